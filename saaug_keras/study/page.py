"""The page of a study: one HTML file that needs nothing else."""

from __future__ import annotations

import json

from saaug_keras._page import document, duration
from saaug_keras._page import escape as _e
from saaug_keras.study import charts
from saaug_keras.study.results import Findings, against_direct, candidate_text, interval, outcome_text, points

_STYLE = """
:root{--ink:#1d2330;--soft:#5a6475;--rule:#e3e7ee;--panel:#f7f8fa}
*{box-sizing:border-box}
body{margin:0;color:var(--ink);background:#fff;font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:58rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.01em}
h2{font-size:1.3rem;margin:3rem 0 .3rem;padding-top:1.2rem;border-top:2px solid var(--ink)}
h3{font-size:1rem;margin:1.8rem 0 .2rem}
p{margin:.4rem 0}.soft{color:var(--soft);font-size:.92rem}
code{font:.88em ui-monospace,Menlo,Consolas,monospace;background:var(--panel);padding:.05em .3em;border-radius:3px}
.lead{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:.8rem;margin:1.6rem 0 0}
.lead div{background:var(--panel);border-left:4px solid #8a94a6;padding:.8rem 1rem;border-radius:0 6px 6px 0}
.lead .better{border-color:#00734f}.lead .worse{border-color:#b91c1c}
.lead b{display:block;font-size:1.4rem;line-height:1.3;white-space:nowrap;font-variant-numeric:tabular-nums}
.lead span{display:block;font-size:.88rem;color:var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;margin:.6rem 0}
th,td{text-align:right;padding:.35rem .6rem;border-bottom:1px solid var(--rule);font-variant-numeric:tabular-nums;
vertical-align:top;white-space:nowrap}
th{color:var(--soft);font-weight:600;border-bottom:1.5px solid #b6bdc9}
th:first-child,td:first-child{text-align:left;padding-left:0;white-space:normal}
td:last-child,th:last-child{padding-right:0}
td.left,th.left{text-align:left}
td small{display:block;color:var(--soft);line-height:1.35;max-width:22rem}
.better{color:#00734f}.worse{color:#b91c1c}.warn{color:#92400e}
.notice{background:#fff7e6;border:1px solid #f2d9a6;border-radius:6px;padding:.6rem .9rem;margin:1rem 0}
svg{display:block;width:100%;height:auto;margin:.6rem 0}
svg text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#5a6475}
svg text.name{fill:#1d2330;font-size:12.5px}
svg text.value{fill:#1d2330;font-variant-numeric:tabular-nums}
details{margin:.6rem 0}summary{cursor:pointer}
pre{background:var(--panel);padding:.8rem 1rem;border-radius:6px;overflow-x:auto;
font:.82rem/1.5 ui-monospace,Menlo,Consolas,monospace}
@media print{h2{break-before:auto}svg,table{break-inside:avoid}}
"""


def render(study, findings: Findings, records) -> str:
    """The page of a study's findings; `records` are all its finished runs, for the machines that made them."""
    parts = [f"<h1>{_e(study.title)}</h1>"]
    if study.notes:
        parts += [f"<p>{_e(text)}</p>" for text in study.notes.split("\n\n")]
    seeds = ", ".join(map(str, study.seeds))
    parts.append(
        f'<p class="soft">Data set {_e(study.dataset)} &middot; seeds {seeds} &middot; '
        f"{len(findings.summary)} runs in the tables. Every arm's learning rate (and whatever else it may choose) was "
        "chosen on validation images; the test images were evaluated once per run, at the end.</p>"
    )
    if findings.missing:
        parts.append(
            f'<p class="notice">This study has not finished: {findings.missing} runs are missing. '
            "Start the same command again to go on.</p>"
        )
    parts.append(_lead(findings))
    colours = charts.colours_of(study)
    for group in findings.groups():
        parts += _section(study, *group, colours)
    parts += _tuning(study, findings)
    if findings.failures:
        rows = "".join(f"<li><code>{_e(r['name'])}</code>: {_e(r['message'])}</li>" for r in findings.failures)
        parts += ["<h2>Failed runs</h2>", f"<ul>{rows}</ul>"]
    parts += _how(study, records)
    return document(study.title, _STYLE, parts)


def _lead(findings):
    """In large type: the first question of the study, and the same arm at equal compute and against the twin."""
    cards = []
    for backbone, operator, _, answers in findings.groups():
        for answer in answers:
            against_main = answer.comparison.against in ("direct-equal-compute", "twin")
            if answer is answers[0] or (answer.comparison.arm == answers[0].comparison.arm and against_main):
                cards.append(
                    f'<div class="{answer.difference.verdict}"><b>{points(answer.difference, sign=True)}</b>'
                    f"<span>{_e(answer.comparison.question)}, percentage points</span>"
                    f"<span>{_e(operator)} on {_e(backbone)}, {_seeds(answer.difference)}: "
                    f"{answer.difference.verdict}</span></div>"
                )
    return f'<div class="lead">{"".join(cards)}</div>' if cards else ""


def _seeds(estimate):
    return f"{estimate.count} seed" + "s" * (estimate.count > 1)


def _section(study, backbone, operator, lines, answers, colours):
    parameters = {record.get("parameters") for line in lines for record in line.records} - {None}
    size = f" ({max(parameters):,} parameters)" if parameters else ""
    parts = [f"<h2>{_e(operator)} on {_e(backbone)}{size}</h2>", "<h3>Test accuracy</h3>"]
    parts.append(
        '<p class="soft">A dot is one seed, the upright bar the mean of the seeds, the line one standard deviation to '
        "both sides; the dashed rule is the mean of direct training.</p>"
    )
    parts.append(charts.accuracy_chart(lines, colours))
    parts.append(_lines_table(study, lines))
    parts.append(
        '<p class="soft">Training images: as many as those of validation, not augmented. A network that is no better on them '
        "underfits.</p>"
    )
    if answers:
        parts += [
            "<h3>What each part is worth</h3>",
            '<p class="soft">Differences of test accuracy between runs of the same seed. Diamond: the mean; bar: the '
            "95% interval of the mean (Student's t); small dots: seeds. If the bar reaches 0, these runs show no "
            "difference; and of twenty questions without any difference, one is answered wrongly by chance.</p>",
            charts.answers_chart(answers, colours),
            _answers_table(answers),
        ]
    if curves := charts.curves_chart(lines, colours):
        parts += [
            "<h3>Learning curves</h3>",
            '<p class="soft">Validation accuracy in percent, mean over seeds, from a quarter of training on; names in '
            "the order of the last values.</p>",
            curves,
        ]
    return parts


def _lines_table(study, lines):
    differences = against_direct(lines)
    rows = []
    for line in lines:
        difference = differences.get(line.cell)
        description = study.arm(line.cell.arm).description
        rows.append(
            f"<tr><td>{_e(line.cell.arm)}{f'<small>{_e(description)}</small>' if description else ''}</td>"
            f'<td class="left">{_e(candidate_text(line.candidate))}</td><td>{line.epochs}</td>'
            f"<td>{_e(duration(line.train_seconds))}</td><td>{line.test.count}</td>"
            f"<td>{points(line.training) if line.training else ''}</td><td>{points(line.validation)}</td>"
            f"<td><b>{points(line.test)}</b></td>"
            f"<td>{points(difference, sign=True) if difference else ''}</td></tr>"
        )
    return (
        '<div class="scroll"><table><tr><th>arm</th><th class="left">chosen</th><th>epochs</th><th>time</th><th>n</th>'
        f"<th>training images</th><th>validation</th><th>test</th><th>minus direct</th></tr>{''.join(rows)}</table></div>"
    )


def _answers_table(answers):
    rows = "".join(
        f"<tr><td>{_e(a.comparison.question)}<small><code>{_e(a.comparison.arm)}</code> minus "
        f"<code>{_e(a.comparison.against)}</code></small></td><td>{points(a.difference, sign=True)}</td>"
        f"<td>{a.difference.count}</td><td>{interval(a.difference)}</td>"
        f'<td class="left {a.difference.verdict}">{a.difference.verdict}</td></tr>'
        for a in answers
    )
    return (
        '<div class="scroll"><table><tr><th>question</th><th>mean &plusmn; spread</th><th>n</th><th>95% interval</th>'
        f'<th class="left"></th></tr>{rows}</table></div>'
    )


def _tuning(study, findings):
    if not findings.choices:
        return []
    rows = []
    for choice in findings.choices:
        tried = "<br>".join(
            f"<b>{text}</b>" if candidate == choice.chosen else text
            for candidate, record in choice.tried
            for text in [f"{_e(candidate_text(candidate))}: {outcome_text(record)}"]
        )
        note = f'<span class="warn">at the edge: {_e(", ".join(choice.edges))}</span>' if choice.edges else ""
        rows.append(
            f'<tr><td>{_e(choice.cell.arm)}</td><td class="left">{_e(choice.cell.operator)}</td>'
            f'<td class="left">{_e(choice.cell.backbone)}</td><td class="left">{tried}</td>'
            f'<td class="left">{note}</td></tr>'
        )
    edges = any(choice.edges for choice in findings.choices)
    return [
        "<h2>How each arm was tuned</h2>",
        f'<p class="soft">One run per candidate with seed {study.tuning_seed}, for {study.tuning_epochs} epochs (in '
        "proportion where an arm has other epochs). Validation accuracy in percent; the choice in bold."
        + (" At the edge: a value beyond those tried might be better still." if edges else "")
        + "</p>",
        '<div class="scroll"><table><tr><th>arm</th><th class="left">operator</th><th class="left">backbone</th>'
        f'<th class="left">tried</th><th></th></tr>{"".join(rows)}</table></div>',
    ]


def _how(study, records):
    machines = {json.dumps(record["machine"], sort_keys=True) for record in records}
    lines = [", ".join(f"{key} {value}" for key, value in json.loads(text).items()) for text in sorted(machines)]
    total = sum(record.get("train_seconds", 0.0) for record in records)
    arms = "\n".join(
        f"{arm.name:<24} {json.dumps(arm.recipe)}"
        + (f"  epochs for the training time of {arm.equal_compute_to}" if arm.equal_compute_to else "")
        for arm in study.arms
    )
    return [
        "<h2>How it was made</h2>",
        f"<p>{len(records)} runs, {_e(duration(total))} of training in all. <code>saaug study --config "
        f"{_e(study.name)}.toml --out DIR</code></p>",
        *(f'<p class="soft">{_e(line)}</p>' for line in lines),
        f"<details><summary>Recipe of all arms</summary><pre>{_e(json.dumps(study.recipe, indent=1))}</pre></details>",
        f"<details><summary>What each arm changes</summary><pre>{_e(arms)}</pre></details>",
    ]
