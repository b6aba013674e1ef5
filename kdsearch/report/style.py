"""The frame of report.html: its style and the places that ``html`` fills. Nothing is fetched from anywhere."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name: distillation study</title>
<style>
:root { --ink: #1f2933; --quiet: #5f6c7b; --line: #e4e7eb; --accent: #0b6e8f; --over: #a33b12; }
* { box-sizing: border-box; }
body { margin: 0; background: #f7f8fa; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { margin: 0 0 4px; font-size: 30px; line-height: 1.2; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 0 0 16px; font-size: 20px; }
h3 { margin: 20px 0 6px; font-size: 16px; }
header p { margin: 0 0 24px; color: var(--quiet); overflow-wrap: anywhere; }
section { margin-top: 20px; padding: 24px; background: white; border: 1px solid var(--line); border-radius: 10px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 16px; }
.card { padding: 16px 20px 18px; background: white; border: 1px solid var(--line); border-radius: 10px;
  border-top: 3px solid var(--accent); }
.card h3 { margin: 0; } .card h3 span { font-weight: 400; color: var(--quiet); }
.card p { margin: 4px 0 10px; } .card .big { margin: 2px 0; font-size: 26px; font-weight: 650; }
code { padding: 2px 6px; background: #eef1f4; border-radius: 4px;
  font: 13px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(120px, 200px) 1fr; gap: 6px 20px; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0 0 8px; }
.wide { overflow-x: auto; margin: 16px 0 8px; }
table { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th { padding: 6px 12px 6px 0; text-align: left; font-weight: 600; color: var(--quiet);
  border-bottom: 2px solid var(--line); vertical-align: bottom; }
td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
details td { white-space: normal; overflow-wrap: anywhere; }
tr.front td { background: #f1f8fa; }
.mark { padding: 1px 7px; color: white; background: var(--accent); border-radius: 9px; font-size: 12px; }
.over { color: var(--over); font-size: 12px; }
.note { color: var(--quiet); font-size: 14px; }
ul { margin: 0; padding-left: 20px; } li { margin: 4px 0; }
summary { cursor: pointer; }
@media print {
  body { background: white; font-size: 12px; } main { padding: 0; max-width: none; }
  section, .card { border: 0; padding: 12px 0; break-inside: avoid-page; } .modebar { display: none; }
}
</style>
$plotly
</head>
<body>
<main>
<header><h1>$name</h1><p>$lead</p></header>
$cards
$sections
</main>
</body>
</html>
"""
