"""Where a guest finds one of its disks: by the PCI address of the device, since names such as /dev/vda are its own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbdresize.guests.qemu.monitor import Monitor, Refused, reading

_PERIPHERAL = "/machine/peripheral/"


@dataclass(frozen=True)
class Place:
    """A disk as its guest sees it. `pci` is such as `0000:00:04.0`; `unit` the target and LUN behind a SCSI controller.

    What is None is not known; `serial` is what the operator gave the device.
    """

    pci: str | None = None
    unit: tuple[int, int] | None = None
    serial: str | None = None


def place_of(monitor: Monitor, device: str) -> Place:
    """The place of a device, told by its id or its path among QEMU's objects.

    Raises PeerFailed where QEMU does not answer. The guest numbers its PCI buses itself, so this is asked anew for
    each grow.
    """
    path = (device if device.startswith("/") else _PERIPHERAL + device).removesuffix("/virtio-backend")
    is_scsi = _property(monitor, path, "scsi-id") is not None
    unit = (_number(monitor, path, "scsi-id"), _number(monitor, path, "lun")) if is_scsi else None
    serial = _property(monitor, path, "serial")
    bus = _property(monitor, path, "parent_bus")
    controller = _device_of(bus) if is_scsi and isinstance(bus, str) else path
    told = monitor.execute("query-pci")
    with reading("query-pci"):
        address = _address(_pci_devices(told), controller, monitor)
    return Place(address, unit, serial if isinstance(serial, str) and serial else None)


def _device_of(bus: str) -> str:
    """The PCI device that a bus belongs to: `/machine/peripheral/s/virtio-backend/s.0` is of `…/s`."""
    return bus.rpartition("/")[0].removesuffix("/virtio-backend")


def _address(devices: Sequence[Mapping[str, Any]], path: str, monitor: Monitor) -> str | None:
    """The one of QEMU's PCI devices that is the object at `path`: by its id, else by its slot and function."""
    found = [each for each in devices if path == _PERIPHERAL + str(each.get("qdev_id"))]
    if not found:
        place = str(_property(monitor, path, "legacy-addr"))
        unnamed = [each for each in devices if not each.get("qdev_id")]
        found = [each for each in unnamed if f"{each['slot']:02x}.{each['function']:x}" == place]
    if len(found) != 1:
        return None
    return f"0000:{found[0]['bus']:02x}:{found[0]['slot']:02x}.{found[0]['function']:x}"


def _pci_devices(told: Any) -> list[Mapping[str, Any]]:
    """All devices of `query-pci`, with those behind bridges."""

    def below(devices: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for device in devices:
            yield device
            yield from below(device.get("pci_bridge", {}).get("devices", ()))

    return [device for bus in told for device in below(bus.get("devices", ()))]


def _number(monitor: Monitor, path: str, name: str) -> int:
    value = _property(monitor, path, name)
    return value if isinstance(value, int) else 0


def _property(monitor: Monitor, path: str, name: str) -> Any:
    """A property of an object; None where it has none of this name."""
    try:
        return monitor.execute("qom-get", {"path": path, "property": name})
    except Refused:
        return None
