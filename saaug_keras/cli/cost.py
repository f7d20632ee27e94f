"""`saaug cost`: what a network costs, operator and bit width apart, without building it."""

from __future__ import annotations

from saaug_keras.cli import common

# Key of `cost.compare` -> heading.
HEADINGS = {
    "fp32_multiply": "FP32 multiply",
    "int8_multiply": "INT8 multiply",
    "operator_alone": "at 32 bits",
    "deployed": "as deployed",
}
ROWS = (
    ("multiply", "multiplies"),
    ("shift", "shifts"),
    ("add", "adds"),
    ("operations", "operations"),
    ("parameters", "params"),
    ("flash bytes", "flash_bytes"),
    ("RAM bytes", "ram_bytes"),
    ("model file bytes", "model_bytes"),
    ("activation bytes", "activation_bytes"),
    ("energy mJ", "energy_mj"),
    ("latency ms", "latency_ms"),
)


def add_parser(subparsers):
    """The parser of `saaug cost`."""
    parser = subparsers.add_parser(
        "cost",
        help="operations, memory and energy of a network",
        description="Prints what a network costs beside its multiplicative twin at 32 and at 8 bits, so that operator "
        "and bit width are seen apart. Energy and latency are an accelerator's, by the Eyeriss formula; flash and RAM "
        "are everything that a microcontroller of --core gives to a network of --target. Exit code 1 if a limit is exceeded.",
    )
    parser.add_argument("--backbone", required=True, help="for example mcunet-in0, mobilenetv2-tiny")
    common.add_operator_option(parser)
    parser.add_argument("--resolution", type=int, help="pixels (default: the publication's)")
    parser.add_argument("--channels", type=int, default=3, help="of the image (default: 3)")
    parser.add_argument("--classes", type=int, default=1000, help="default: 1000")
    parser.add_argument(
        "--strides", type=common.integers, metavar="S,S,...", help="of the stem and the stages, in place of the backbone's own"
    )
    parser.add_argument("--width-multiplier", type=float, default=1.0, help="of all channels (default: 1)")

    group = parser.add_argument_group("view")
    group.add_argument("--bits", choices=("8", "32", "deployed"), help="price this network alone, at this width")
    group.add_argument(
        "--convention",
        choices=("honest", "paper"),
        default="honest",
        help="honest counts the sums, "
        "the requantization and what stands between the layers; paper counts one operation per tap "
        "(default: honest)",
    )
    group.add_argument("--layers", action="store_true", help="one row per layer")
    group.add_argument(
        "--target",
        choices=("c", "tflm"),
        default="c",
        help="what flash and RAM are counted for: a project of plain C, or TFLite Micro with our operators (default: c)",
    )
    common.add_core_option(group, default=None)

    group = parser.add_argument_group("limits")
    group.add_argument("--device", help="a microcontroller's name, for example stm32f412")
    group.add_argument("--sram", type=common.size, metavar="BYTES", help="in place of the device's; 64k is 64 KiB")
    group.add_argument("--flash", type=common.size, metavar="BYTES", help="in place of the device's")
    group.add_argument("--max-energy", type=float, metavar="MJ", help="mJ an inference")
    group.add_argument("--max-ops", type=float, metavar="N", help="operations an inference")
    return parser


def run(args) -> int:
    """Prices a network."""
    from saaug_keras import backbones, cost, devices

    shape = None
    if args.resolution is not None or args.channels != 3:
        resolution = backbones.spec(args.backbone).input_shape[0] if args.resolution is None else args.resolution
        shape = (resolution, resolution, args.channels)
    spec = backbones.spec(
        args.backbone,
        input_shape=shape,
        num_classes=args.classes,
        operator=args.operator,
        strides=args.strides,
        width=args.width_multiplier,
    )
    bits = {"8": 8, "32": 32}.get(args.bits)
    limits = {"sram": args.sram, "flash": args.flash, "max_energy": args.max_energy, "max_ops": args.max_ops}
    devices.limits(args.device, **limits)
    where = {"target": args.target, "core": args.core or devices.core_of(args.device)}
    if args.bits:
        columns = {
            f"{args.bits} bits" if bits else HEADINGS["deployed"]: cost.estimate(
                spec, bits=bits, convention=args.convention, **where
            )
        }
        found = next(iter(columns.values()))
    else:
        compared = cost.compare(spec, convention=args.convention, **where)
        columns, found = {HEADINGS[key]: value for key, value in compared.items()}, compared["deployed"]
    exceeded = devices.fits(found, args.device, **limits)

    result = {
        "backbone": args.backbone,
        "operator": args.operator,
        "input_shape": list(spec.input_shape),
        "num_classes": spec.num_classes,
        **where,
        **found.as_dict(layers=args.layers),
    }
    if not args.bits:
        same_width = cost.estimate(spec, bits=8, convention=args.convention, **where)
        result["columns"] = {key: value.as_dict() for key, value in compared.items()}
        result["savings"] = savings(compared, same_width)
    if args.device or any(value is not None for value in limits.values()):
        result["exceeded"] = [
            {"what": item.what, "need": item.need, "limit": item.limit, "unit": item.unit} for item in exceeded
        ]
    if args.json:
        common.show(args, result)
        return 1 if exceeded else 0

    size = "x".join(map(str, spec.input_shape))
    title = f"{args.backbone}, {args.operator}, {size}, {spec.num_classes} classes, convention {args.convention}"
    title += f", target {args.target} on core {where['core']}"
    rows = [(label, *(_cell(getattr(column, name)) for column in columns.values())) for label, name in ROWS]
    common.show(args, result, title=title, rows=rows, columns=("", *columns))
    if args.layers:
        show_layers(args, columns, result)
    if not args.bits:
        print_savings(result["savings"])
    for item in exceeded:
        print(f"does not fit {args.device or 'the limits'}: {item}")
    return 1 if exceeded else 0


def _cell(value):
    return "-" if value is None else value


def savings(compared, same_width) -> dict:
    """Fractions of energy saved, operator and bit width apart. `same_width`: this network at 8 bits throughout."""
    fp32, int8 = compared["fp32_multiply"].energy_mj, compared["int8_multiply"].energy_mj
    return {
        "operator_alone_of_fp32": 1 - compared["operator_alone"].energy_mj / fp32,
        "bit_width_alone_of_fp32": 1 - int8 / fp32,
        "deployed_of_fp32": 1 - compared["deployed"].energy_mj / fp32,
        "operator_alone_of_int8": 1 - same_width.energy_mj / int8,
        "deployed_of_int8": 1 - compared["deployed"].energy_mj / int8,
    }


def print_savings(found):
    """The savings as sentences."""
    share = {key: f"{100 * value:.1f}%" for key, value in found.items()}
    print(
        f"Energy saved against FP32 multiplication: {share['operator_alone_of_fp32']} by the operator alone, "
        f"{share['bit_width_alone_of_fp32']} by 8 bits alone, {share['deployed_of_fp32']} as deployed.\n"
        f"Against INT8 multiplication: {share['operator_alone_of_int8']} by the operator alone, "
        f"{share['deployed_of_int8']} as deployed.\n"
        "An accelerator's figures, by the Eyeriss formula: they say nothing about a microcontroller's battery."
    )


def show_layers(args, columns, result):
    """Two tables, one row per layer: counts of the network shown last, and every column's energy."""
    shown = list(columns.values())[-1]
    rows = [
        (
            layer.name,
            layer.operator,
            layer.multiplies,
            layer.shifts,
            layer.adds,
            layer.params,
            layer.model_bytes,
            layer.output_bytes,
            layer.energy_mj * 1e3,
            layer.latency_ms * 1e3,
        )
        for layer in shown.layers
    ]
    headings = ("layer", "operator", "multiply", "shift", "add", "params", "model", "output", "energy, uJ", "latency, us")
    common.show(args, result, title=f"layers, {list(columns)[-1]}", rows=rows, columns=headings)
    if len(columns) > 1 and len({len(column.layers) for column in columns.values()}) == 1:
        rows = [
            (layers[-1].name, *(layer.energy_mj * 1e3 for layer in layers))
            for layers in zip(*(column.layers for column in columns.values()), strict=True)
        ]
        common.show(args, result, title="energy of the layers, uJ", rows=rows, columns=("layer", *columns))
