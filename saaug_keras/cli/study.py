"""`saaug study`: runs a grid of trainings and writes what each part is worth."""

from __future__ import annotations

import functools
import pathlib

from saaug_keras.cli import common


def add_parser(subparsers):
    """The parser of `saaug study`."""
    parser = subparsers.add_parser(
        "study",
        help="run a grid of trainings; table, curves and page",
        description="Trains every arm of a grid: first one run per candidate (learning rates), chosen on validation "
        "images, then the choice with every seed. Writes summary.json, table.md, curves-*.png and page.html. Finished "
        "runs are files; a study that was killed goes on when the same command is given again.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the grid, a TOML file as those in studies/")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the study; the same to go on with it")
    parser.add_argument("--data", metavar="DIR", help="folder with the data set's files")
    common.add_budget_options(parser)
    parser.add_argument(
        "--only",
        metavar="GLOB",
        help="run only the arms that match, for example 'augmented*', or backbone/operator/arm: '*/shift/*'",
    )
    parser.add_argument("--report", action="store_true", help="run nothing; write the report of what is finished")
    return parser


def run(args) -> int:
    """Runs or reports. Returns 1 if a run that the tables need has failed."""
    jobs, until = common.budget_of("study", args)
    common.load_keras()
    from saaug_keras import _budget
    from saaug_keras import study as studies
    from saaug_keras.study import results

    say = functools.partial(common.say, args)
    line = common.Progress()
    study = studies.Study.load(args.config)
    if args.report:
        if not (pathlib.Path(args.out) / "runs").is_dir():
            raise FileNotFoundError(f"study: `--out` must be the folder of a study. Received: {args.out}.")
        book = studies.Book(args.out, study)
    else:
        book = studies.run(
            study,
            args.out,
            jobs=jobs or _budget.best_jobs(),
            only=args.only,
            say=say,
            data_dir=args.data,
            prepare=common.load_keras,
            until=until,
            watch=lambda text: line.update(text) if text else line.clear(),
        )
    findings = studies.report(book, say=say)
    answers = [
        {
            "question": answer.comparison.question,
            "arm": answer.comparison.arm,
            "against": answer.comparison.against,
            "backbone": answer.backbone,
            "operator": answer.operator,
            "mean": answer.difference.mean,
            "spread": answer.difference.spread,
            "seeds": answer.difference.count,
            "verdict": answer.difference.verdict,
        }
        for answer in findings.answers
    ]
    failed = [{"name": record["name"], "message": record["message"]} for record in findings.failures]
    result = {"out": str(args.out), "runs": findings.summary, "answers": answers, "failed": failed, "missing": findings.missing}
    differences = results.against_direct(findings.lines)
    rows = [
        (
            str(entry.cell) if len(study.backbones) > 1 else f"{entry.cell.operator}/{entry.cell.arm}",
            entry.epochs,
            entry.test.count,
            results.points(entry.validation),
            results.points(entry.test),
            results.points(differences[entry.cell], sign=True) if entry.cell in differences else "",
        )
        for entry in findings.lines
    ]
    common.show(
        args, result, title=study.title, rows=rows, columns=("arm", "epochs", "n", "validation %", "test %", "minus direct")
    )
    for answer in findings.answers:
        say(
            f"{answer.operator} on {answer.backbone}: {answer.comparison.question}: "
            f"{results.points(answer.difference, sign=True)} points, {answer.difference.count} seeds, "
            f"{answer.difference.verdict}"
        )
    say(f"page: {book.out / 'page.html'}")
    if findings.lost:
        say(f'study: {findings.lost} runs of the tables could not be made; see "Failed runs" in {book.out}/table.md')
    return 1 if findings.lost else 0
