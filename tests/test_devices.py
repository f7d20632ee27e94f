"""Device profiles and limits."""

import dataclasses

import pytest

from saaug_keras import backbones, cost, devices


def test_the_profiles_are_found_by_name():
    assert [device.name for device in devices.DEVICES] == [
        "stm32f412",
        "stm32f746",
        "stm32h743",
        "nrf52840",
        "rp2040",
        "ch32v003",
    ]
    found = devices.device("STM32F412")
    assert (
        found.processor == "Cortex-M4F" and found.core == "m4" and found.sram_bytes == 262144 and found.flash_bytes == 1048576
    )
    assert [device.name for device in devices.DEVICES if not device.has_multiplier] == ["ch32v003"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.sram_bytes = 1


@pytest.mark.parametrize(
    "name, end",
    [
        ("nrf52832", "Received: name='nrf52832'. Did you mean 'nrf52840'?"),
        ("esp", "Received: name='esp'."),
        (None, "Received: name=None."),
    ],
)
def test_an_unknown_device_names_the_nearest(name, end):
    with pytest.raises(ValueError) as caught:
        devices.device(name)
    assert str(caught.value).startswith("devices.device: `name` must be one of 'ch32v003', 'nrf52840', 'rp2040', ")
    assert str(caught.value).endswith(end)


def test_limits_come_from_the_device_and_from_arguments():
    assert devices.limits("rp2040") == {"ram_bytes": 264 * 1024, "flash_bytes": 2048 * 1024}
    assert devices.limits("rp2040", sram=1000, max_ops=5) == {"ram_bytes": 1000, "flash_bytes": 2048 * 1024, "operations": 5}
    assert devices.limits(flash=8, max_energy=0.5) == {"flash_bytes": 8, "energy_mj": 0.5}
    assert devices.limits() == {}
    for name in ("sram", "flash", "max_energy", "max_ops"):
        with pytest.raises(ValueError, match=f"devices.limits: `{name}` must be a number"):
            devices.limits("rp2040", **{name: 0})
        with pytest.raises(TypeError, match=f"devices.limits: `{name}` must be a number"):
            devices.limits("rp2040", **{name: "64k"})


def test_what_does_not_fit_is_said_with_numbers():
    spec = backbones.spec("mcunet-in0", num_classes=10, operator="shift")
    found = cost.estimate(spec, core="m4")
    assert devices.fits(spec, "stm32f412") == devices.fits(found, devices.device("stm32f412")) == []
    small = devices.fits(spec, "ch32v003")
    assert [item.what for item in small] == ["RAM", "flash"]
    there = cost.estimate(spec, core="rv32e")
    assert small[0] == devices.Violation("RAM", there.ram_bytes, 2048, "bytes")
    assert str(small[0]) == f"RAM: needs {there.ram_bytes:,} bytes, the limit is 2,048"
    exactly = {"sram": found.ram_bytes, "flash": found.flash_bytes, "max_energy": found.energy_mj, "max_ops": found.operations}
    assert devices.fits(found, **exactly) == []
    for name, value in exactly.items():
        assert len(devices.fits(found, **{**exactly, name: value * 0.999})) == 1
