"""Whether ledger, volumes, files and servers agree; and what of it can be put right without risk.

It runs beside servers and other commands, and tells only what is so: what concerns one VM or one image is looked at
under its lock, rows are read in one transaction, and all else has to be found more than once. What is being changed
is skipped, and named.
"""

import time

import sqlalchemy as sql

from nbdresize.control import pool, schema
from nbdresize.control.checks import leftovers
from nbdresize.control.checks.images import check_image
from nbdresize.control.checks.report import CheckReport, Findings, What
from nbdresize.control.checks.rows import check_operations, check_rows, is_damaged
from nbdresize.control.checks.servers import check_servers
from nbdresize.control.checks.vms import check_vm
from nbdresize.control.checks.volumes import Files
from nbdresize.control.model import Progress
from nbdresize.control.operations import Listener, nobody
from nbdresize.control.site import Site
from nbdresize.errors import NbdresizeError
from nbdresize.units import format_size

_STEP = "checking"
_REPORT_EVERY = 0.1


def check(site: Site, *, repair: bool = False, listener: Listener = nobody) -> CheckReport:
    """Look at everything. See Control.check."""
    findings = Findings(repair)
    if is_damaged(site, findings):
        return findings.report()
    files = leftovers.suspects(site)
    check_rows(site, findings)
    _check_vms_and_images(site, findings, listener)
    check_servers(site, findings)
    leftovers.check_volumes(site, findings)
    leftovers.check_left(site, findings, files)
    check_operations(site, findings)
    _check_pool(site, findings)
    return findings.report()


def _check_vms_and_images(site: Site, findings: Findings, listener: Listener) -> None:
    with site.ledger.reading() as connection:
        vms = list(connection.scalars(sql.select(schema.vms.c.name).order_by(schema.vms.c.name)))
        images = list(connection.scalars(sql.select(schema.images.c.name).order_by(schema.images.c.name)))
    files = Files()
    reported = time.monotonic()
    for done, vm in enumerate(vms):
        if time.monotonic() - reported >= _REPORT_EVERY:
            listener(Progress(_STEP, done, len(vms), counted="VMs"))
            reported = time.monotonic()
        check_vm(site, findings, files, vm)
    for image in images:
        check_image(site, findings, files, image)
    files.check(findings)


def _check_pool(site: Site, findings: Findings) -> None:
    """More promised than there is: no fault of the ledger, since file systems may become smaller."""
    try:
        found = pool.read_pool(site)
    except NbdresizeError as error:
        findings.found(What.VOLUME_UNUSABLE, "pool", error.problem, error.way_out)
        return
    limit = pool.terms_of(found).limit
    if limit is not None and found.promised > limit:
        findings.warn(
            What.OVER_POOL,
            "pool",
            f"{format_size(found.promised)} are promised to VMs and images, but no more than {format_size(limit)} may "
            f"be: the pool has {format_size(found.capacity)}",
            "lower budgets, delete VMs or images, add space to the pool, or see nbdresize pool update --overcommit",
        )
