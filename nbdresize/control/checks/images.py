"""One image: its volume, its charge, and whether it is whole. Under its lock."""

from contextlib import suppress
from functools import partial

from nbdresize.control import catalog_records, locks, records, recovery
from nbdresize.control.checks.charges import check_image_charge
from nbdresize.control.checks.report import Findings, Repair, What
from nbdresize.control.checks.vms import LOCK_WAIT
from nbdresize.control.checks.volumes import Files, check_stored_volume
from nbdresize.control.model import Image
from nbdresize.control.records import Intent
from nbdresize.control.site import Site
from nbdresize.errors import NbdresizeError, ResourceInUse


def check_image(site: Site, findings: Findings, files: Files, name: str) -> None:
    """Look at the image of that name, if there still is one; skipped where it is being made or deleted.

    Its lock is held as by those who make disks from it, whom this keeps waiting no more than they each other.
    """
    try:
        lock = locks.lock_image(site.state.locks, name, LOCK_WAIT, exclusive=False)
    except ResourceInUse as busy:
        findings.skip(f"image {name}", busy.problem)
        return
    with lock:
        image, intent = _read(site, name)
        if image is not None:
            findings.count("images")
            if intent is None:
                _check(site, findings, files, image)
    if image is None:
        with suppress(NbdresizeError):
            _complete(site, name)  # takes away the lock file, which may have been made here
    elif intent is not None:
        findings.found(
            What.UNFINISHED_CHANGE,
            intent.operation,
            f"A {intent.kind.value} of image {name} was left unfinished: its process is gone",
            repair=Repair("finishes or undoes it", "it was completed", partial(_complete, site, name)),
        )


def _read(site: Site, name: str) -> tuple[Image | None, Intent | None]:
    with site.ledger.reading() as connection:
        image = catalog_records.read_image(connection, name)
        unfinished = records.read_intents(connection)
    if image is None:
        return None, None
    return image, next((intent for intent in unfinished if intent.image_id == image.id), None)


def _check(site: Site, findings: Findings, files: Files, image: Image) -> None:
    subject = f"image {image.name}"
    if check_stored_volume(site, findings, subject, image.volume, image.size, f"nbdresize image delete {image.name}"):
        files.add(subject, site.pool.volume(image.volume).path)
        check_image_charge(site, findings, image)


def _complete(site: Site, name: str) -> None:
    with recovery.changing_image(site, name, LOCK_WAIT):
        pass
