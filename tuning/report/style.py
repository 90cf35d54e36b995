"""How the page looks: one style sheet, light and dark, screen and paper."""

from __future__ import annotations

from tuning.report.palette import css_variables

_LIGHT = "--paper:#f6f5f1;--rule:#d9d7cf;--soft:#efede6;--good:#0b7a55;--bad:#b3400a;"
_DARK = "--paper:#111418;--rule:#333a43;--soft:#20262d;--good:#4fd0a2;--bad:#f59264;"

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
 font:17px/1.6 Charter,"Bitstream Charter","Iowan Old Style","Source Serif 4",Cambria,Georgia,
 "Liberation Serif",serif}
main{max-width:1100px;margin:0 auto;padding:56px 28px 80px}
h1{font-size:clamp(30px,4.6vw,46px);line-height:1.14;letter-spacing:-.014em;margin:10px 0 20px;
 font-weight:600;max-width:23em;text-wrap:balance}
h2{font-size:26px;line-height:1.25;margin:64px 0 10px;font-weight:600;letter-spacing:-.006em}
h3{font:600 14px/1.4 var(--sans);margin:28px 0 8px}
p{margin:0 0 14px;max-width:43em}
:root{--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,
 sans-serif;--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
.kicker,.meta,.cards,figure,table,summary,.chain,nav{font-family:var(--sans)}
.kicker{font-size:13px;letter-spacing:.06em;text-transform:uppercase;color:var(--muted);margin:0}
.lead{font-size:20px;line-height:1.52;max-width:37em}
.meta{display:flex;flex-wrap:wrap;gap:6px 28px;font-size:13.5px;color:var(--muted);margin:22px 0 0;
 padding:14px 0 0;border-top:1px solid var(--rule)}
.meta b{color:var(--ink);font-weight:600}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(250px,1fr));gap:16px;
 margin:34px 0 0}
.cards>div,figure,.sheet{background:var(--card);border:1px solid var(--rule);border-radius:10px}
.cards>div{padding:18px 20px 16px;font-size:14.5px;line-height:1.5}
.cards h3{margin:0;font-weight:500;font-size:13.5px;color:var(--muted)}
.cards strong{display:block;font-size:34px;line-height:1.2;font-weight:600;margin:6px 0 8px;
 font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.cards p{margin:0}
figure{margin:22px 0 0;padding:22px 24px 16px}
.scroll{overflow-x:auto}
.scroll>svg{display:block;width:100%;min-width:640px;height:auto}
svg text{font-family:var(--sans)}
figcaption{font-size:14px;line-height:1.5;color:var(--muted);margin-top:14px;max-width:60em}
figcaption b{color:var(--ink);font-weight:600}
.sheet{margin:22px 0 0;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;line-height:1.4;
 font-variant-numeric:tabular-nums lining-nums}
th{font-weight:500;font-size:12.5px;color:var(--muted);text-align:right;vertical-align:bottom;
 padding:12px 12px 9px;border-bottom:1px solid var(--rule);white-space:nowrap}
td{padding:9px 12px;text-align:right;border-bottom:1px solid var(--soft);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:20px}
th:last-child,td:last-child{padding-right:20px}
tr:last-child td{border-bottom:0}
tr.group td{border-top:1px solid var(--rule)}
tr.best td{background:color-mix(in srgb,var(--good) 9%,transparent)}
tr.missing td{color:var(--muted)}
td.left,th.left{text-align:left}
td.why{text-align:left;font-style:italic;white-space:normal;min-width:16em}
td small{display:block;font:11.5px/1.4 var(--mono);color:var(--muted);white-space:normal;
 overflow-wrap:anywhere;max-width:25em}
td.wrap{white-space:normal;min-width:11em}
tr.title td{text-align:left;font-weight:600;font-size:13px;padding-top:18px;
 border-top:1px solid var(--rule)}
tbody tr.title:first-child td{border-top:0;padding-top:12px}
.note{font:14px/1.5 var(--sans);color:var(--muted);margin-top:14px;max-width:60em}
td .unit{color:var(--muted)}
.dot{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:9px}
.dot.ring{border:2.5px solid;background:none!important}
.bar{position:relative;display:inline-block;width:130px;height:14px;vertical-align:-2px}
.bar::before{content:"";position:absolute;left:0;right:0;top:6.5px;height:1px;background:var(--grid)}
.bar i{position:absolute;top:5px;height:4px;border-radius:2px;opacity:.55}
.bar b{position:absolute;top:2px;width:10px;height:10px;margin-left:-5px;border-radius:50%}
.bar u{position:absolute;top:-3px;bottom:-3px;width:1px;background:var(--muted)}
.better{color:var(--good);font-weight:600}.worse{color:var(--bad);font-weight:600}
.none{color:var(--muted)}
.chain path{stroke:var(--muted);stroke-width:1.4;opacity:.75}
.chain path.open,.chain .missing rect:first-of-type{stroke-dasharray:4 3}
.chain rect{fill:var(--card);stroke:var(--rule);stroke-width:1.2}
.chain .name{font-size:14px;font-weight:600;fill:var(--ink)}
.chain .more{font-size:12px;fill:var(--muted)}
.chain .score{font-size:14px;font-weight:600;fill:var(--ink);font-variant-numeric:tabular-nums}
.chain .missing .name{fill:var(--muted)}
ul.plain{padding:0;margin:14px 0 0;list-style:none;max-width:46em}
ul.plain li{padding:10px 0 10px 20px;border-top:1px solid var(--rule);position:relative}
ul.plain li:last-child{border-bottom:1px solid var(--rule)}
ul.plain li::before{content:"";position:absolute;left:2px;top:22px;width:7px;height:1.5px;
 background:var(--muted)}
details{margin-top:20px}
summary{cursor:pointer;font-size:15px;font-weight:600;padding:6px 0}
details table{font-size:12.5px}
details td{text-align:left;padding:5px 12px;font-family:var(--mono);font-size:12px}
details th{text-align:left}
details td:first-child{font-family:var(--sans);color:var(--muted)}
details td.all{color:var(--ink)}
footer{font:13px/1.5 var(--sans);color:var(--muted);margin-top:64px;padding-top:16px;
 border-top:1px solid var(--rule)}
@media(max-width:640px){main{padding:32px 16px 56px}figure{padding:16px 14px 12px}
 .lead{font-size:18px}h2{margin-top:48px}}
@media print{body{background:none;font-size:10.5pt}main{max-width:none;padding:0}
 h2{break-after:avoid;margin-top:28px}figure,.cards>div,tr,li{break-inside:avoid}
 .sheet,.scroll{overflow:visible}.scroll>svg{min-width:0}table{font-size:8.5pt}
 td,th{padding:4px 6px}td small{font-size:7pt}.bar{width:90px}}
"""


def style_sheet() -> str:
    """The content of the page's style element. Paper is always light."""
    light = f":root{{color-scheme:light dark;{_LIGHT}{css_variables(False)}}}"
    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}{css_variables(True)}}}}}"
    return f"{light}\n{dark}{_RULES}"
