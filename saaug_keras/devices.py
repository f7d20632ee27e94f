"""Microcontrollers by name, and whether a network fits one.

SRAM is the largest contiguous region, since the arena is one block. `fits` compares the whole of both memories with
everything that the network takes of them, as `memory` counts it for a target and the device's core. The program's own
code, stack and variables come on top: pass `sram` and `flash` to leave room.

1 KiB = 1024 bytes; figures from the manufacturers' data sheets.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from saaug_keras import _validate

KIB = 1024


@dataclass(frozen=True)
class Device:
    """A microcontroller.

    Attributes:
        name: by which `device` finds it.
        processor: as its maker names it. core: the one of `memory.CORES` that the kernels are compiled for.
        clock_mhz: the highest.
        sram_bytes, flash_bytes: see the module.
        multiplier: what a multiplication takes, for a reader.
        has_multiplier: False where each one is a call of the compiler's library.
    """

    name: str
    processor: str
    core: str
    clock_mhz: int
    sram_bytes: int
    flash_bytes: int
    multiplier: str
    has_multiplier: bool = True


# Instruction timings: Arm's technical reference manuals of the cores.
DEVICES = (
    # STM32F412xE/xG data sheet (DS11139): 100 MHz, 1 MiB flash, 256 KiB SRAM in one bank.
    Device("stm32f412", "Cortex-M4F", "m4", 100, 256 * KIB, 1024 * KIB, "one cycle, or two 16-bit products a cycle (SMLAD)"),
    # STM32F745xx/F746xx data sheet (DS10916): 216 MHz, 1 MiB flash, 320 KiB SRAM (64 DTCM + 240 + 16, contiguous).
    Device("stm32f746", "Cortex-M7", "m7", 216, 320 * KIB, 1024 * KIB, "one cycle, or two 16-bit products a cycle (SMLAD)"),
    # STM32H743xI data sheet (DS12110): 480 MHz, 2 MiB flash, 1 MiB SRAM of which 512 KiB (AXI) are contiguous.
    Device("stm32h743", "Cortex-M7", "m7", 480, 512 * KIB, 2048 * KIB, "one cycle, or two 16-bit products a cycle (SMLAD)"),
    # nRF52840 product specification: 64 MHz, 1 MiB flash, 256 KiB RAM.
    Device("nrf52840", "Cortex-M4F", "m4", 64, 256 * KIB, 1024 * KIB, "one cycle, or two 16-bit products a cycle (SMLAD)"),
    # RP2040 data sheet: 133 MHz, 264 KiB SRAM, the single-cycle multiplier of Cortex-M0+, no flash inside; 2 MiB is
    # what its reference board, the Pico, carries.
    Device("rp2040", "Cortex-M0+", "m0", 133, 264 * KIB, 2048 * KIB, "one cycle, 32-bit result, one product at a time"),
    # CH32V003 data sheet: QingKe V2A (RV32EC: no M extension), 48 MHz, 16 KiB flash, 2 KiB SRAM.
    Device("ch32v003", "RV32EC", "rv32e", 48, 2 * KIB, 16 * KIB, "none: a library call", has_multiplier=False),
)
_BY_NAME = {device.name: device for device in DEVICES}


def device(name: str) -> Device:
    """A device by its name, upper or lower case.

    Raises:
        ValueError: an unknown name; the message holds the nearest ones.
    """
    found = _BY_NAME.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        near = difflib.get_close_matches(str(name).lower(), _BY_NAME, cutoff=0.5)
        meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        listed = ", ".join(map(repr, sorted(_BY_NAME)))
        raise ValueError(f"devices.device: `name` must be one of {listed}. Received: name={name!r}.{meant}")
    return found


@dataclass(frozen=True)
class Violation:
    """A limit that a network exceeds: `need` against `limit`, in `unit`."""

    what: str
    need: float
    limit: float
    unit: str

    def __str__(self):
        return f"{self.what}: needs {self.need:,.6g} {self.unit}, the limit is {self.limit:,.6g}"


def limits(on: Device | str | None = None, *, sram=None, flash=None, max_energy=None, max_ops=None) -> dict:
    """The limits that hold, by the name of the cost they bound: {"ram_bytes": 262144, ...}.

    Args:
        on: a `Device`, its name, or None.
        sram, flash: bytes; in place of the device's.
        max_energy: mJ an inference.
        max_ops: operations an inference.
    Raises:
        ValueError: an unknown device or a number that is not positive.
    """
    if on is not None and not isinstance(on, Device):
        on = device(on)
    found = {} if on is None else {"ram_bytes": on.sram_bytes, "flash_bytes": on.flash_bytes}
    given = {
        "ram_bytes": ("sram", sram),
        "flash_bytes": ("flash", flash),
        "energy_mj": ("max_energy", max_energy),
        "operations": ("max_ops", max_ops),
    }
    for cost, (argument, value) in given.items():
        if value is not None:
            _validate.number_in("devices.limits", argument, value, 1e-9, 1e15)
            found[cost] = value
    return found


_WORDS = {
    "ram_bytes": ("RAM", "bytes"),
    "flash_bytes": ("flash", "bytes"),
    "energy_mj": ("energy", "mJ"),
    "operations": ("operations", "operations"),
}


def core_of(on: Device | str | None) -> str:
    """The core that flash and RAM are counted for: the device's, "m4" without one."""
    return "m4" if on is None else (on if isinstance(on, Device) else device(on)).core


def fits(network, on: Device | str | None = None, *, sram=None, flash=None, max_energy=None, max_ops=None, target="c"):
    """The limits that a network exceeds; none if the list is empty.

    Args:
        network: a `NetSpec`, priced as deployed on the device's core, or a `cost.NetCost`; one at 32 bits, which is never
            exported, takes no memory.
        on, sram, flash, max_energy, max_ops: as for `limits`.
        target: of `memory.TARGETS`, for a `NetSpec`.
    Returns:
        List of `Violation`, in the order sram, flash, energy, operations.
    """
    if not hasattr(network, "ram_bytes"):
        from saaug_keras import cost

        network = cost.estimate(network, target=target, core=core_of(on))
    held = limits(on, sram=sram, flash=flash, max_energy=max_energy, max_ops=max_ops)
    return [
        Violation(what, getattr(network, name), held[name], unit)
        for name, (what, unit) in _WORDS.items()
        if name in held and (getattr(network, name) or 0) > held[name]
    ]
