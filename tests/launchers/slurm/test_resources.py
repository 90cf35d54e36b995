"""What jobs ask SLURM for: what beats what in cluster.yaml, flags and variables, and bad values."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from tuning.config import CHECKOUT
from tuning.launchers.slurm.resources import Cluster, Resources, cluster_path, for_kinds
from tuning.plan import KINDS, Stage
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit

FILE = """
defaults:
  partition: gpu
  account: mine
  gres: gpu:1
  cpus: 8
  mem: 64G
  time: 08:00:00
  setup: [module load cuda, source venv/bin/activate]
stages:
  pretrain: {gres: "gpu:4", processes: 4, time: 1-00:00:00}
  evaluation: {gres: , mem: null, setup: [], throttle: 4}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


@pytest.fixture
def asked(path: Path):
    """Makes the resources of a kind of stage from a file, flags and variables."""

    def resources(kind: str, text: str = FILE, flags=None, environ=None) -> Resources:
        path.write_text(text)
        return Cluster(flags, environ or {}, path).resources(kind)

    return resources


def refused(path: Path, text: str, flags=None, environ=None) -> str:
    """What is said of a file that cannot be; always one line."""
    path.write_text(text)
    with pytest.raises(UserError) as error:
        Cluster(flags, environ or {}, path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_defaults_hold_for_every_kind_of_stage(asked):
    for kind in ("sft", "pft"):
        found = asked(kind)
        assert (found.partition, found.gres, found.cpus) == ("gpu", "gpu:1", 8)
        assert found.setup == ("module load cuda", "source venv/bin/activate")
        assert (found.nodes, found.offline, found.throttle) == (1, True, None)


def test_a_kind_of_stage_beats_the_defaults(asked):
    found = asked("pretrain")
    assert (found.gres, found.processes, found.time) == ("gpu:4", 4, "1-00:00:00")
    assert (found.cpus, found.account) == (8, "mine")


def test_an_empty_value_takes_back_a_default(asked):
    found = asked("evaluation")
    assert (found.gres, found.mem, found.setup, found.throttle) == (None, None, (), 4)
    assert found.partition == "gpu"


def test_an_empty_number_is_the_number_that_nobody_set(asked):
    assert asked("sft", FILE + "  sft: {cpus: , nodes: null}").cpus == 1


@pytest.mark.parametrize("text", ["", "defaults:\nstages:\n", "stages: {}", "defaults: {}"])
def test_a_file_may_say_nothing(asked, text):
    assert asked("sft", text) == Resources()


@pytest.mark.parametrize(
    ("written", "time"),
    [
        ("12:00:00", "12:00:00"),
        ("0:45:00", "0:45:00"),
        ("90", "90"),
        ("010", "010"),
        ("1-12", "1-12"),
        ("1-00:00:00", "1-00:00:00"),
        ("'12:00'", "12:00"),
        ("infinite", "infinite"),
    ],
)
def test_a_time_stays_as_it_is_written(asked, written, time):
    assert asked("sft", f"defaults: {{time: {written}}}").time == time


def test_a_flag_beats_a_variable_beats_a_kind_beats_the_defaults(asked):
    text = "defaults: {partition: a, account: a, qos: a, mem: 1G}\n"
    text += "stages: {sft: {account: b, qos: b, mem: 2G}}"
    environ = {"SBATCH_QOS": "c", "SBATCH_MEM_PER_NODE": "3G"}
    found = asked("sft", text, {"mem": "4G"}, environ)
    assert (found.partition, found.account, found.qos, found.mem) == ("a", "b", "c", "4G")


def test_every_variable_of_sbatch_is_heard(asked):
    named = {f.metadata["variable"]: f.name for f in fields(Resources) if "variable" in f.metadata}
    assert set(named) == {
        "SBATCH_PARTITION", "SBATCH_ACCOUNT", "SBATCH_QOS", "SBATCH_GRES", "SBATCH_CONSTRAINT",
        "SBATCH_MEM_PER_NODE", "SBATCH_TIMELIMIT",
    }  # fmt: skip
    for variable, name in named.items():
        assert getattr(asked("pft", FILE, environ={variable: "7"}), name) == "7"


def test_an_empty_variable_says_nothing(asked):
    assert asked("sft", environ={"SBATCH_PARTITION": ""}).partition == "gpu"


def test_an_empty_flag_takes_back_what_the_file_says(asked):
    assert not asked("sft", flags={"gres": ""}).gres


def test_a_report_takes_no_gpu_and_little_time_whatever_the_defaults_are(asked):
    found = asked("report", flags={"gres": "gpu:8", "time": "9-0", "cpus": 32})
    assert (found.gres, found.nodes, found.processes) == (None, 1, 1)
    assert (found.cpus, found.time) == (1, "00:30:00")
    environ = {"SBATCH_GRES": "gpu:8", "SBATCH_TIMELIMIT": "9-0"}
    assert asked("report", environ=environ).gres is None


def test_a_report_outside_the_container_has_no_python_of_it(asked):
    text = "defaults: {container: a.sif, python: /opt/python}\n"
    assert asked("sft", text).python == "/opt/python"
    assert asked("report", text).python is None
    assert asked("report", "", flags={"container": "a.sif", "python": "/opt/python"}).python is None
    own = text + "stages: {report: {python: /usr/bin/python3}}"
    assert asked("report", own).python == "/usr/bin/python3"
    inside = text + "stages: {report: {container: b.sif}}"
    assert asked("report", inside).python == "/opt/python"
    assert asked("report", "defaults: {python: /opt/python}").python == "/opt/python"


def test_a_report_goes_where_everything_goes_or_where_its_own_lines_say(asked):
    assert asked("report", flags={"partition": "other"}).partition == "other"
    text = FILE + "  report: {partition: cpu, time: 5, cpus: 2}"
    found = asked("report", text)
    assert (found.partition, found.time, found.cpus) == ("cpu", "5", 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("defalts: {}", "unknown key in cluster.yaml: 'defalts'; choose from: defaults, "
                        "max_submit, stages. Did you mean 'defaults'?"),
        ("max_submit: 2", "cluster.yaml: max_submit is 2; it must be at least 3: a stage, "),
        ("max_submit: few", "cluster.yaml: max_submit is 'few'; it must be a whole number."),
        ("stages: {evaluaton: {}}", "Did you mean 'evaluation'?"),
        ("defaults: {partiton: gpu}", "unknown setting in cluster.yaml: defaults: 'partiton'"),
        ("defaults: {partiton: gpu}", "Did you mean 'partition'?"),
        ("stages: {sft: {tme: 1}}", "unknown setting in cluster.yaml: stages: sft: 'tme'"),
        ("stages: {sft: {tme: 1}}", "Did you mean 'time'?"),
        ("- a\n- b", "cluster.yaml is ['a', 'b']; it must be a mapping of: defaults, max_submit, "
                       "stages."),
        ("defaults: gpu", "defaults is 'gpu'; it must be a mapping."),
        ("stages: [sft]", "stages is ['sft']; it must be a mapping."),
        ("stages: {sft: 3}", "stages: sft is '3'; it must be a mapping."),
        ("defaults: {cpus: many}", "cluster.yaml: defaults: cpus is 'many'; it must be a whole "
                                   "number."),
        ("defaults: {cpus: {a: b}}", "it must be a whole number."),
        ("defaults: {cpus: 0}", "cpus is 0; it must be at least 1."),
        ("stages: {pretrain: {nodes: -1}}", "nodes is -1; it must be at least 1."),
        ("stages: {pretrain: {processes: 0}}", "processes is 0; it must be at least 1."),
        ("defaults: {signal_seconds: 0}", "signal_seconds is 0; it must be at least 1."),
        ("defaults: {throttle: 0}", "throttle is 0; it must be at least 1."),
        ("defaults: {offline: perhaps}", "offline is 'perhaps'; it must be true or false."),
        ("defaults: {time: tomorrow}", "time is 'tomorrow'; write minutes, hours:minutes:seconds"),
        ("defaults: {time: 1:2:3:4}", "time is '1:2:3:4'; write minutes"),
        ("defaults: {partition: a b}", "partition is 'a b'; it must be one word."),
        ("defaults: {mem: \"64G'\"}", "it must be one word."),
        ("defaults: {gres: [a, b]}", "it must be one word."),
        ("defaults: {a", "is not valid YAML"),
        ("defaults: {setup: module load cuda}", "it must be a list, for example [module load "),
        ("stages: {}\n\nstages: {}", "gives the key 'stages' twice, in line 1 and in line 3; keep "
                                     "one."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(path, text, said):
    assert said in refused(path, text)


def test_a_bad_flag_or_variable_is_said_in_one_line(path):
    assert "cpus is 0" in refused(path, FILE, {"cpus": 0})
    said = refused(path, FILE, environ={"SBATCH_TIMELIMIT": "soon"})
    assert said.startswith("time is 'soon'")


def sft_stage(trainer: str) -> Stage:
    return Stage(
        name="x", role="sft", hash="x", script="run_sft.py", phases=("train",),
        joinable=trainer == "engine",
    )  # fmt: skip


def test_what_trains_may_have_several_processes_and_the_engine_several_nodes(path, asked):
    assert asked("pretrain", "stages: {pretrain: {nodes: 2, processes: 4}}").nodes == 2
    assert asked("pft", "stages: {pft: {processes: 4}}").processes == 4
    said = refused(path, "stages: {evaluation: {processes: 4}}")
    assert said.startswith("stages of kind evaluation are one process: nodes and processes must be")
    assert "stages of kind pft with TRL are trained on one node" in refused(
        path, "stages: {pft: {nodes: 2}}"
    )
    path.write_text("stages: {sft: {nodes: 2, processes: 4}}")
    made = Cluster(environ={}, path=path)
    assert made.of(sft_stage("engine")).processes == 4
    with pytest.raises(UserError, match="stages of kind sft with TRL are trained on one node"):
        made.of(sft_stage("trl"))


def test_a_flag_for_several_processes_is_for_stages_that_they_can_do_together(path):
    path.write_text("")
    made = Cluster({"processes": 4, "nodes": 2}, {}, path)
    for trainer, nodes in (("engine", 2), ("trl", 1)):
        found = made.of(sft_stage(trainer))
        assert (found.processes, found.nodes) == (4, nodes)
    evaluated = Stage(name="x", role="sweetspot", hash="x", phases=("infer",))
    assert made.of(evaluated).processes == 1
    assert made.resources("pretrain").processes == 4
    assert made.resources("evaluation").processes == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.yaml' cannot be read \(No such file"):
        Cluster(path=tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot be read \(not UTF-8 text\)"):
        Cluster(path=tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("export WANDB_API_KEY=0123", "WANDB_API_KEY"),
        ("export HF_TOKEN='hf_x'", "HF_TOKEN"),
        ("MY_SECRET = x", "MY_SECRET"),
        ("export OPENAI_APIKEY=x", "OPENAI_APIKEY"),
        ("db_password=x", "db_password"),
        ("wandb login --relogin 0123", "login --relogin"),
        ("hf auth login --token hf_x", "--token"),
        ("git clone https://me:0123@host/x", "://"),
        ("curl -H 'Authorization: Bearer 0123' x", "Bearer"),
    ],
)
@pytest.mark.parametrize("place", ["defaults: {{setup: [{}]}}", "stages: {{sft: {{setup: [{}]}}}}"])
def test_a_secret_in_the_setup_is_refused_and_not_repeated(path, line, name, place):
    said = refused(path, place.format(f'"{line}"'))
    assert f"setup gives a secret ({name});" in said
    assert "jobs inherit it" in said
    assert "0123" not in said and "hf_x" not in said


@pytest.mark.parametrize(
    "line",
    ["module load cuda/12.8", "export TOKENIZERS_PARALLELISM=false", "source ~/secrets.sh",
     "export HF_TOKEN", "export HF_TOKEN=$(cat ~/.token)", "export WANDB_API_KEY=${MY_KEY}",
     "MONKEY=1", "bash --login env.sh", "curl -H 'Authorization: Bearer $HF_TOKEN' x"],
)  # fmt: skip
def test_other_setup_lines_are_none_of_our_business(asked, line):
    assert asked("sft", f'defaults: {{setup: ["{line}"]}}').setup == (line,)


def test_tuning_cluster_names_another_file(monkeypatch, path):
    monkeypatch.delenv("TUNING_CLUSTER", raising=False)
    assert cluster_path() == CHECKOUT / "slurm" / "cluster.yaml"
    path.write_text("defaults: {partition: elsewhere}")
    monkeypatch.setenv("TUNING_CLUSTER", str(path))
    assert cluster_path() == path
    assert Cluster(environ={}).resources("sft").partition == "elsewhere"


def test_the_file_of_the_checkout_is_valid_and_asks_for_nothing_a_small_cluster_lacks():
    made = Cluster(environ={}, path=CHECKOUT / "slurm" / "cluster.yaml")
    for kind in KINDS:
        found = made.resources(kind)
        assert (found.partition, found.gres, found.mem) == (None, None, None)


def test_the_example_in_the_file_of_the_checkout_is_valid(asked):
    text = (CHECKOUT / "slurm" / "cluster.yaml").read_text()
    lines = [line[2:] for line in text.splitlines() if line.startswith("# ")]
    start = lines.index("defaults:")
    end = next(at for at, line in enumerate(lines) if line.startswith("Secrets"))
    example = "\n".join(lines[start:end])
    assert asked("pretrain", example).processes == 4
    assert asked("report", example).partition == "cpu"


def test_the_command_line_for_a_kind_beats_all_else(path):
    path.write_text("defaults: {time: 60}\nstages: {sft: {time: 90}, report: {gres: gpu:1}}")
    words = ["sft:time=8:00:00", "pft:gres=", "evaluation:offline=no", "report:cpus=2"]
    environ = {"SBATCH_TIMELIMIT": "120", "SBATCH_GRES": "gpu:4"}
    made = Cluster({"time": "150"}, environ, path, for_kinds(words))
    assert [made.resources(kind).time for kind in ("sft", "pft")] == ["8:00:00", "150"]
    assert [made.resources(kind).gres for kind in ("sft", "pft", "report")] == [
        "gpu:4", None, "gpu:1"
    ]  # fmt: skip
    assert made.resources("report").cpus == 2
    assert not made.resources("evaluation").offline and made.resources("sft").offline


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sft", "--resources has 'sft'; write KIND:SETTING=VALUE, for example sft:time=8:00:00."),
        ("time=3", "--resources has 'time=3'; write KIND:SETTING=VALUE"),
        ("sfft:time=3", "unknown kind of stage in --resources: 'sfft'; choose from: pretrain, "),
        ("sfft:time=3", "Did you mean 'sft'?"),
        ("dpo:time=3", "choose from: pretrain, evaluation, sft, pft, report."),
        ("sft:tme=3", "unknown setting in --resources sft: 'tme'"),
        ("sft:tme=3", "Did you mean 'time'?"),
        ("sft:setup=true", "unknown setting in --resources sft: 'setup'"),
        ("sft:cpus=many", "--resources sft:cpus is 'many'; it must be a whole number."),
        ("sft:container_runtime=docker", "choose from: apptainer, singularity, pyxis."),
        ("sft:options=--array=1", "--resources sft:options has '--array=1'"),
        ("sft:time=soon", "time is 'soon'; write minutes"),
        ("pft:nodes=2", "stages of kind pft with TRL are trained on one node"),
        ("sft:mounts=data", "mounts has 'data'; write a whole path"),
        ("sft:mounts=/a,/b", "mounts has '/a,/b'"),
    ],
)
def test_a_bad_setting_of_a_kind_is_said_in_one_line(path, word, said):
    path.write_text("")
    with pytest.raises(UserError) as error:
        Cluster({}, {}, path, for_kinds([word]))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_list_may_be_given_several_times_and_nothing_else(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path.write_text("")
    words = ["sft:mounts=/a", "sft:mounts=~/b:/c", "sft:container=~/x.sif"]
    found = Cluster({}, {}, path, for_kinds(words)).resources("sft")
    assert (found.mounts, found.container) == (("/a", "/home/me/b:/c"), "/home/me/x.sif")
    with pytest.raises(UserError, match="gives sft:time twice; keep one"):
        for_kinds(["sft:time=1", "sft:time=1"])
