"""Reads the fake's snapshots with boto3: lists, pages, blocks, checksums, errors.

Called by TestBoto3 with the endpoint's URL; prints "ok" when all is as it should be.
"""
import base64
import hashlib
import json
import sys
import urllib.request

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

url = sys.argv[1]
once = Config(retries={"max_attempts": 0}, region_name="us-east-1")


def client(service, **more):
    return boto3.client(service, endpoint_url=url, config=once, **more)


def settings(**values):
    body = json.dumps(values).encode()
    urllib.request.urlopen(urllib.request.Request(url + "/_fake/settings", body, method="PUT")).read()


def fails(code, reason, call, **args):
    try:
        call(**args)
    except ClientError as e:
        got = e.response["Error"]["Code"], e.response.get("Reason", "")
        assert got == (code, reason), got
        return
    raise AssertionError(f"no {code}")


ebs, ec2 = client("ebs"), client("ec2")


def blocks(snapshot, **args):
    """All blocks of a snapshot, and on how many pages they came, empty ones apart."""
    found, pages, empty = [], 0, 0
    while True:
        page = ebs.list_snapshot_blocks(SnapshotId=snapshot, **args)
        assert page["BlockSize"] == 524288 and page["VolumeSize"] == 2, page
        pages += 1
        empty += not page["Blocks"]
        found += page["Blocks"]
        if "NextToken" not in page:
            return found, pages, empty
        args["NextToken"] = page["NextToken"]


found, pages, _ = blocks("snap-01", MaxResults=100)
index = [b["BlockIndex"] for b in found]
assert index == [0, 1, 7] + list(range(100, 400)) + [3071], index
assert pages == 4, pages
assert [b["BlockIndex"] for b in blocks("snap-01", StartingBlockIndex=399)[0]] == [399, 3071]

settings(page_size=7, empty_pages=0.4, faults={"seed": 3})
short, pages, empty = blocks("snap-01")
assert [b["BlockIndex"] for b in short] == index and pages > 44 and empty > 5, (pages, empty)
settings()

for b in found[:3] + found[-1:]:
    got = ebs.get_snapshot_block(SnapshotId="snap-01", **b)
    data = got["BlockData"].read()
    assert len(data) == got["DataLength"] == 524288 and got["ChecksumAlgorithm"] == "SHA256"
    assert base64.b64encode(hashlib.sha256(data).digest()).decode() == got["Checksum"]
assert data == b"\4" * (524288 - 512) + bytes(512)

changed = ebs.list_changed_blocks(FirstSnapshotId="snap-01", SecondSnapshotId="snap-02")["ChangedBlocks"]
assert [(c["BlockIndex"], "FirstBlockToken" in c, "SecondBlockToken" in c) for c in changed] == \
    [(1, True, True), (7, True, False), (9, False, True)], changed

fails("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND", ebs.list_snapshot_blocks, SnapshotId="snap-0f")
fails("AccessDeniedException", "UNAUTHORIZED_ACCOUNT", ebs.list_snapshot_blocks, SnapshotId="snap-06")
fails("ValidationException", "INVALID_BLOCK_TOKEN", ebs.get_snapshot_block, SnapshotId="snap-01", BlockIndex=1, BlockToken=found[0]["BlockToken"])
fails("ValidationException", "INVALID_PAGE_TOKEN", ebs.list_snapshot_blocks, SnapshotId="snap-01", NextToken="AAUB")
fails("ValidationException", "UNRELATED_SNAPSHOTS", ebs.list_changed_blocks, FirstSnapshotId="snap-03", SecondSnapshotId="snap-01")
settings(faults={"throttle": 1})
fails("RequestThrottledException", "ACCOUNT_THROTTLED", ebs.list_snapshot_blocks, SnapshotId="snap-01")
settings(deny=["kms:Decrypt"])
fails("AccessDeniedException", "DEPENDENCY_ACCESS_DENIED", ebs.list_snapshot_blocks, SnapshotId="snap-03")
settings()
fails("InvalidSignatureException", "", client("ebs", aws_secret_access_key="wrong", aws_access_key_id="AKIAIOSFODNN7EXAMPLE").list_snapshot_blocks, SnapshotId="snap-01")

own = ec2.describe_snapshots(OwnerIds=["self"], Filters=[{"Name": "volume-id", "Values": ["vol-01"]}])["Snapshots"]
assert [(s["SnapshotId"], s["State"], s["Progress"], s["StorageTier"]) for s in own] == [
    ("snap-01", "completed", "100%", "standard"), ("snap-02", "completed", "100%", "standard"),
    ("snap-04", "pending", "42%", "standard"), ("snap-05", "completed", "100%", "archive")], own
assert own[0]["StartTime"].isoformat() == "2026-11-01T03:00:00+00:00"
assert {t["Key"]: t["Value"] for t in own[0]["Tags"]}["Name"] == "web01"
assert ec2.describe_snapshots(SnapshotIds=["snap-03"])["Snapshots"][0]["KmsKeyId"].endswith("key/k")
fails("InvalidSnapshot.NotFound", "", ec2.describe_snapshots, SnapshotIds=["snap-08"])
devices = ec2.describe_instances(InstanceIds=["i-01"])["Reservations"][0]["Instances"][0]["BlockDeviceMappings"]
assert [(d["DeviceName"], d["Ebs"]["VolumeId"]) for d in devices] == [("/dev/xvda", "vol-01"), ("/dev/xvdb", "vol-03")]

counts = json.load(urllib.request.urlopen(url + "/_fake/counts"))
assert counts["Error:RequestThrottledException"] == 1 and counts["Blocks"] == 4, counts
print("ok")
