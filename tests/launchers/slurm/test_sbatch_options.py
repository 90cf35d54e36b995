"""Options of sbatch that people add: what is taken, and what is refused with its reason."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.small_site import use
from tuning.launchers.slurm.resources import Cluster, for_kinds, sbatch
from tuning.runs.errors import UserError
from tuning.submit import main

pytestmark = pytest.mark.unit

RUN = (
    "--task", "math", "--dataset", "arith", "--sft_ratio", "0.5", "--base_model", "tiny",
    "--pft_method", "dpo", "--train_sizes", "20", "--do_training", "--do_sft_first",
    "--launcher", "slurm", "--dry_run",
)  # fmt: skip


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("--exclusive", ("--exclusive",)),
        ("--exclusive --mail-type=END", ("--exclusive", "--mail-type=END")),
        (" --mail-type END,FAIL  --nice=-5 ", ("--mail-type END,FAIL", "--nice=-5")),
        ("-x n1 --mem-per-cpu=2G", ("-x n1", "--mem-per-cpu=2G")),
        ("--reservation='my own'", ("--reservation='my own'",)),
        ("--time-min=10 --nodelist=n1 --gres-flags=x", ("--time-min=10", "--nodelist=n1",
                                                        "--gres-flags=x")),
        ("--wckey=mine", ("--wckey=mine",)),
        ("", ()),
    ],
)  # fmt: skip
def test_a_line_is_split_into_options(line, options):
    assert sbatch(line) == options


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("exclusive", "--sbatch has 'exclusive', which belongs to no option of sbatch."),
        ("--exclusive user more", "--sbatch has 'more', which belongs to no option of sbatch."),
        ("--nice=1 2", "--sbatch has '2', which belongs to no option of sbatch."),
        ("--x='a", "--sbatch is '--x='a': no closing quotation."),
        ("--x='a\nrm -rf b'", "write an option of sbatch"),
        ("--array=0-9", "--array of sbatch cannot be set: a task of a job array is a stage."),
        ("-a 0-9", "--array of sbatch cannot be set"),
        ("--arr=0-9", "--array of sbatch cannot be set"),
        ("-H", "--hold of sbatch cannot be set"),
        ("-Jmine", "--job-name of sbatch cannot be set"),
        ("--comment=x", "it holds the token by which jobs are found again."),
        ("--output=x", "`tuning logs` and `status` read the output of jobs."),
        ("--dependency=afterok:1", "--dependency is for the first ones."),
        ("--no-requeue", "a stage that needs more time is requeued."),
        ("--requeue", "--requeue of sbatch cannot be set: it is set already."),
        ("--wrap=true", "the job script is made from the plan."),
        ("--test-only", "nothing would be submitted"),
        ("--time=1", "--time of sbatch is the setting 'time': give --time, --resources KIND:time="),
        ("-c 4", "--cpus-per-task of sbatch is the setting 'cpus': give --cpus,"),
        ("--signal=USR1", "is the setting 'signal_seconds'"),
        ("--ntasks-per-node=4", "is the setting 'processes'"),
        ("--export=ALL,HF_TOKEN=abc", "gives a secret (HF_TOKEN)"),
    ],
)  # fmt: skip
def test_what_cannot_be_added_is_said_with_its_reason(tmp_path, line, said):
    with pytest.raises(UserError) as error:
        sbatch(line)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert "abc" not in str(error.value)


@pytest.mark.parametrize("place", ["defaults: {{options: [{}]}}",
                                   "stages: {{sft: {{options: [{}]}}}}"])  # fmt: skip
@pytest.mark.parametrize(
    ("option", "said"),
    [("'--array=0-1'", "--array of sbatch cannot be set"),
     ("'-p gpu'", "is the setting 'partition'"),
     ("exclusive", "options has 'exclusive'; write an option of sbatch")],
)  # fmt: skip
def test_a_file_is_told_the_same(tmp_path, place, option, said):
    path = tmp_path / "cluster.yaml"
    path.write_text(place.format(option))
    with pytest.raises(UserError, match=r"cluster\.yaml: ") as error:
        Cluster(environ={}, path=path)
    assert said in str(error.value)


def test_options_are_added_to_those_of_the_file(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("defaults: {options: [--nice=1]}\nstages: {sft: {options: [--nice=2]}}")
    kinds = for_kinds(["report:options=--mail-type=END --mail-user=me@here", "report:options=-k"])
    made = Cluster({"options": sbatch("--exclusive")}, {}, path, kinds)
    assert made.resources("pft").options == ("--nice=1", "--exclusive")
    assert made.resources("sft").options == ("--nice=2", "--exclusive")
    assert made.resources("report").options == (
        "--nice=1", "--exclusive", "--mail-type=END", "--mail-user=me@here", "-k",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--", "'--', which is no option of sbatch"),
        ("-", "'-', which is no option of sbatch"),
        ("--=x", "'--=x', which is no option of sbatch"),
        ("-kH", "'-kH'; --hold of sbatch cannot be set"),
        ("-QsWk", "'-QsWk'; --wait of sbatch cannot be set"),
        ("-kc4", "'-kc4'; --cpus-per-task of sbatch is the setting 'cpus'"),
    ],
)
def test_what_hides_an_option_of_ours_is_refused(word, said):
    with pytest.raises(UserError) as error:
        sbatch(f"--exclusive {word}")
    assert said in str(error.value)


def test_the_value_of_a_short_option_is_no_option():
    assert sbatch("-wnH -kQ") == ("-wnH", "-kQ")


@pytest.fixture
def scripts(monkeypatch, tmp_path, capsys):
    """{kind: script} that a submission with these words would send."""
    use(monkeypatch, tmp_path)
    monkeypatch.setenv("TUNING_CLUSTER", str(tmp_path / "cluster.yaml"))
    (tmp_path / "cluster.yaml").write_text("defaults: {time: 30, signal_seconds: 20}\n")

    def run(*words: str) -> dict[str, str]:
        assert main([*RUN, *words]) == 0
        parts = capsys.readouterr().out.split("\n== ")[1:]
        return {part.split(":")[0].rpartition(".")[2]: part for part in parts}

    return run


@pytest.mark.parametrize(
    "words",
    [("--sbatch", "--exclusive --mail-type=END"), ("--sbatch=--exclusive --mail-type=END",)],
)
def test_the_command_line_adds_options_to_every_job(scripts, words):
    found = scripts(*words)
    assert set(found) == {"pretrain", "sft", "pft", "report"}
    for script in found.values():
        assert "\n#SBATCH --exclusive\n#SBATCH --mail-type=END\nset -eo pipefail\n" in script


def test_one_dashed_option_is_no_flag_of_ours(scripts):
    assert "\n#SBATCH --exclusive\n" in scripts("--sbatch", "--exclusive")["sft"]


def test_the_command_line_changes_one_kind_of_stage(scripts):
    found = scripts(
        "--time", "20", "--resources", "sft:time=8:00:00", "pft:gres=gpu:2", "report:mem=5G",
        "--resources", "pretrain:container=/images/t.sif",
    )  # fmt: skip
    assert "#SBATCH --time=8:00:00\n" in found["sft"] and "--gres" not in found["sft"]
    assert "#SBATCH --time=20\n" in found["pft"] and "#SBATCH --gres=gpu:2\n" in found["pft"]
    assert "#SBATCH --mem=5G\n" in found["report"]
    assert "apptainer exec --nv" in found["pretrain"] and "apptainer" not in found["sft"]


def test_a_job_name_begins_with_the_kind(scripts):
    for kind, script in scripts("--experiment", "mine").items():
        assert f"\n#SBATCH --job-name={kind}-mine." in script


def test_help_lists_the_kinds_and_settings(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "KIND:SETTING=VALUE" in said
    assert "Kinds: pretrain, evaluation, sft, pft, report. Settings: partition, account," in said


def test_bash_reads_a_script_with_quoted_options(scripts):
    script = scripts("--sbatch", "--reservation='a b' --exclusive")["sft"].partition("\n\n")[2]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "#SBATCH --reservation='a b'\n" in script


def test_the_golden_folder_holds_no_stray_script():
    golden = Path(__file__).parent / "golden"
    from tests.launchers.slurm.test_script import SCRIPTS

    assert {path.stem for path in golden.iterdir()} == set(SCRIPTS)
