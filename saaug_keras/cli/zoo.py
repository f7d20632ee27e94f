"""`saaug zoo`: the pretrained networks, from a list to a board."""

from __future__ import annotations

import functools
import pathlib

from saaug_keras.cli import common


def add_parser(subparsers):
    """The parser of `saaug zoo`."""
    parser = subparsers.add_parser(
        "zoo",
        help="pretrained networks",
        description="Lists, shows, evaluates, exports, trains and checks the pretrained networks.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")

    def action(name, text, *, several=False, a_list=False):
        made = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if a_list:
            made.add_argument(
                "names", nargs="+", metavar="NAME", help="entries, as `saaug zoo list` shows them, the most wanted first"
            )
        elif several:
            made.add_argument("names", nargs="*", metavar="NAME", help="entries (default: all that are trained)")
        else:
            made.add_argument("name", metavar="NAME", help="an entry, as `saaug zoo list` shows it")
        return made

    listing = actions.add_parser("list", help="the entries", description="The entries.")
    listing.add_argument("pattern", nargs="?", default="*", help="shell pattern of the names, '*shift*' say")
    listing.add_argument(
        "--sort-by",
        default="name",
        metavar="COLUMN",
        help="int8, flash_bytes, ram_bytes, parameters, macs, instructions_m4, ... (default: name)",
    )
    listing.add_argument(
        "--max-flash", type=common.size, metavar="BYTES", help="of flash, as plain C on a Cortex-M4; 64k is 64 KiB"
    )
    listing.add_argument("--max-ram", type=common.size, metavar="BYTES", help="of RAM")
    listing.add_argument("--csv", metavar="FILE", help="also write every figure, for plots")
    action("card", "what an entry is for, how it was trained and how well it does")
    evaluate = action("eval", "the accuracy of an entry on test images, in Keras and on TFLite Micro")
    evaluate.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    export = action("export", "write an entry for TFLite Micro, as `saaug export` does")
    export.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    export.add_argument("--flavour", choices=("builtin", "custom"))
    export.add_argument("--target", default="tflite", choices=("tflite", "tflm", "c"))
    common.add_packaging_option(export)
    common.add_core_option(export)
    train = action("train", "train entries by their recipes, measure them and put all that into their folders", a_list=True)
    train.add_argument(
        "--run",
        dest="folder",
        metavar="DIR",
        help="folder of the run, where a killed one goes on; of "
        "several entries, of their runs' folders (default: zoo-runs/NAME)",
    )
    common.add_budget_options(train)
    verify = action("verify", "recompute every figure that this machine can", several=True)
    verify.add_argument("--write-table", metavar="FILE", help="also write the table of all entries, zoo/README.md")
    for made in (evaluate, train, verify):
        made.add_argument("--data", metavar="DIR", help="folder with the data set's files")
    for made in actions.choices.values():
        common.add_common_options(made, inner=True)
    return parser


def run(args) -> int:
    """Runs the action."""
    return {"list": _list, "card": _card, "eval": _evaluate, "export": _export, "train": _train, "verify": _verify}[
        args.action
    ](args)


def _list(args) -> int:
    from saaug_keras import zoo
    from saaug_keras.zoo import cards

    names = zoo.list(args.pattern, sort_by=args.sort_by, max_flash=args.max_flash, max_ram=args.max_ram)
    found = [cards.row(name) for name in names]
    if args.csv:
        cards.write_csv(found, args.csv)
    shown = ("name", "int8", "parameters", "flash_bytes", "ram_bytes")
    rows = [tuple(cards.cell(key, each[key]) for key in shown) for each in found]
    titles = [cards.COLUMNS[key] if key != "int8" else "int8 accuracy or mean IoU" for key in shown]
    common.show(args, {each.pop("name"): each for each in found}, rows=rows, columns=titles)
    return 0


def _card(args) -> int:
    from saaug_keras import zoo

    text = zoo.card(args.name)
    if args.json:
        common.show(args, {"name": args.name, "card": text, **zoo.Entry.read(args.name).measured})
    else:
        print(text)
    return 0


def _evaluate(args) -> int:
    from saaug_keras import _validate, zoo

    if args.limit is not None:
        _validate.int_in("zoo eval", "--limit", args.limit, 1, 1 << 31, " images")
    entry = zoo.Entry.read(args.name)
    common.load_keras()
    from saaug_keras import datasets
    from saaug_keras.cli.run import classify
    from saaug_keras.zoo import making

    data = datasets.load(entry.dataset, data_dir=args.data)
    model = zoo.load(args.name)
    with making.model_files(entry, model) as folder:
        result = making.evaluate(entry, model, data, folder, limit=args.limit, classify=lambda *of: classify(*of)[0])
    common.show(args, {"entry": args.name, **result}, title=f"{args.name} on {entry.dataset}'s test images")
    return 0


def _export(args) -> int:
    from saaug_keras import zoo

    entry = zoo.Entry.read(args.name)
    common.load_keras()
    import tflm_export
    from saaug_keras import datasets
    from saaug_keras.cli.export import show_report
    from saaug_keras.zoo import making

    images = datasets.resize(zoo.samples(args.name).x_test[:4], entry.spec().input_shape[:2])
    flavours = making.flavours_of(entry)
    flavour = args.flavour or (flavours[-1] if args.target == "tflite" else flavours[0])
    report = tflm_export.export(
        zoo.load(args.name),
        images,
        args.out,
        flavour=flavour,
        target=args.target,
        name=args.name,
        observation=entry.observation(),
        packaging=args.packaging,
        core=args.core,
    )
    show_report(args, report)
    return 0


def _train(args) -> int:
    from saaug_keras import _budget, zoo

    jobs, until = common.budget_of("zoo train", args)
    entries = [zoo.Entry.read(name) for name in args.names]
    common.load_keras()
    from saaug_keras.cli.train import make_reporter
    from saaug_keras.zoo import making

    say = functools.partial(common.say, args)
    if len(entries) > 1:
        done = making.train_all(
            args.names,
            args.folder or "zoo-runs",
            jobs=min(jobs or _budget.best_jobs(), len(entries)),
            until=until,
            data_dir=args.data,
            prepare=common.load_keras,
            say=say,
        )
        rows = [(name, "the time was over" if done[name] is None else "finished") for name in args.names]
        common.show(args, done, rows=rows, columns=("entry", ""))
        return 0
    (entry,) = entries
    out = pathlib.Path(args.folder or f"zoo-runs/{entry.name}")
    try:
        measured = making.train(entry.name, out, data_dir=args.data, callbacks=[make_reporter(entry.recipe, args)], until=until)
    except _budget.OutOfTime as error:
        say(f"zoo train: the time is over: {error}")
        measured = {}
    common.show(args, {"entry": entry.name, "run": str(out), **measured})
    return 0


def _verify(args) -> int:
    from saaug_keras import zoo
    from saaug_keras._files import write_atomic

    common.load_keras()
    from saaug_keras.zoo import cards, making

    names = args.names or [name for name in zoo.list() if zoo.Entry.read(name).measured]
    result, rows = {}, []
    for name in names:
        checks = making.verify(name, data_dir=args.data)
        result[name] = all(agrees is not False for *_, agrees in checks)
        for figure, recorded, found, agrees in checks:
            shown = [str(value) if isinstance(value, dict) else value for value in (recorded, found)]
            rows.append((f"{name}: {figure}", *shown, {True: "yes", False: "NO", None: "not checked"}[agrees]))
    common.show(args, result, rows=rows, columns=("figure", "recorded", "found", "agrees"))
    if args.write_table:
        write_atomic(args.write_table, cards.readme())
    return 0 if all(result.values()) else 1
