<#
.SYNOPSIS
Grows the last partition of each disk that has grown, with its file system, in a Windows guest.

.DESCRIPTION
Looks at the disks anew, and extends the last partition of each to the largest size that Windows says it can have.
Nothing is moved and nothing shrinks: where another partition, such as one for recovery, lies behind the one that is to
grow, only that is said. May be run again at any time. Prints, sizes in bytes:

    grown PARTITION FILESYSTEM OLD NEW
    full PARTITION FILESYSTEM SIZE
    left PARTITION REASON
    failed PARTITION REASON

Exit code 0: everything has its size; 3: something is left; 1: something failed. Run it as an administrator; with -WhatIf
it changes nothing.

.PARAMETER DiskNumber
Only this disk, as Get-Disk numbers it; otherwise all that are online.
#>
[CmdletBinding(SupportsShouldProcess = $true)]
param(
    [ValidateRange(0, 4096)]
    [int] $DiskNumber
)

Set-StrictMode -Version 3.0
$ErrorActionPreference = 'Stop'
$Least = 1MB
$KnownFileSystems = 'NTFS', 'ReFS'
$code = 0

Update-HostStorageCache
$disks = @(Get-Disk | Where-Object { -not $_.IsOffline -and -not $_.IsReadOnly -and $_.PartitionStyle -ne 'RAW' })
if ($PSBoundParameters.ContainsKey('DiskNumber')) {
    $disks = @($disks | Where-Object { $_.Number -eq $DiskNumber })
    if ($disks.Count -eq 0) {
        Write-Output "failed disk$DiskNumber is not there, is offline, read-only or has no partitions"
        exit 1
    }
}

foreach ($disk in $disks) {
    $last = Get-Partition -DiskNumber $disk.Number -ErrorAction SilentlyContinue |
        Sort-Object -Property Offset | Select-Object -Last 1
    if ($null -eq $last) {
        continue
    }
    $name = "disk$($disk.Number)-partition$($last.PartitionNumber)"
    try {
        $volume = $last | Get-Volume -ErrorAction SilentlyContinue
        if ($null -eq $volume -or $KnownFileSystems -notcontains $volume.FileSystem -or $last.Type -eq 'Recovery') {
            # Worth a word only where there is room that nothing takes.
            if ($disk.LargestFreeExtent -ge $Least) {
                Write-Output "left $name the last partition ($($last.Type)) is not one that grows, and nothing is moved"
                if ($code -eq 0) { $code = 3 }
            }
            continue
        }
        $old = $last.Size
        $most = ($last | Get-PartitionSupportedSize).SizeMax
        if ($most - $old -lt $Least) {
            Write-Output "full $name $($volume.FileSystem) $old"
        }
        elseif ($PSCmdlet.ShouldProcess($name, "Resize from $old to $most bytes")) {
            $last | Resize-Partition -Size $most
            # What is said is asked anew: an answer is no proof.
            $new = (Get-Partition -DiskNumber $disk.Number -PartitionNumber $last.PartitionNumber).Size
            if ($new -gt $old) {
                Write-Output "grown $name $($volume.FileSystem) $old $new"
            }
            else {
                Write-Output "failed $name is still $new bytes large, and could have $most"
                $code = 1
            }
        }
    }
    catch {
        Write-Output "failed $name $($_.Exception.Message)"
        $code = 1
    }
}
exit $code
