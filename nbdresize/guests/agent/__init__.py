"""What runs inside a guest, through its QEMU guest agent: file systems grown after their disk has."""

from nbdresize.guests.agent.file_systems import FileSystems, grow_file_systems
from nbdresize.guests.agent.places import Place, place_of
from nbdresize.guests.agent.session import Agent, NotAllowed

__all__ = ["Agent", "FileSystems", "NotAllowed", "Place", "grow_file_systems", "place_of"]
