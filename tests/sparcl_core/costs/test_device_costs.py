import pytest

from sparcl_core.costs.device import Cost, DeviceProfile, compute_cost, download_cost, upload_cost
from sparcl_core.costs.flops import Flops

PROFILE = DeviceProfile(
    "toy", flops_per_s=1000.0, efficiency=0.5, sparse_efficiency=0.1, memory_bytes=1e9, active_w=8.0, idle_w=2.0,
    radio_j_per_byte=0.25, down_bits_per_s=80.0, up_bits_per_s=16.0, latency_s=3.0,
)  # fmt: skip
FLOPS = Flops(train_sparse=300, train_dense=400, importance=60, masks=40, paper=10**9)


def test_computing_by_hand():
    # sparse 300 / (1000 * 0.1) = 3 s, everything else 500 / (1000 * 0.5) = 1 s; 4 s at 8 W
    assert compute_cost(PROFILE, FLOPS) == Cost(flops=FLOPS, seconds=4.0, joules=32.0)


def test_where_the_maskable_layers_are_dense_they_run_at_the_dense_rate():
    cost = compute_cost(PROFILE, FLOPS, is_sparse=False)
    assert (cost.seconds, cost.joules) == pytest.approx((1.6, 12.8))  # 800 / 500


def test_transfers_by_hand():
    # 20 bytes = 160 bits: 3 + 2 s down, 3 + 10 s up, at 2 W, and 20 * 0.25 J for the radio
    assert download_cost(PROFILE, 20) == Cost(down_bytes=20, seconds=5.0, joules=10.0 + 5.0)
    assert upload_cost(PROFILE, 20) == Cost(up_bytes=20, seconds=13.0, joules=26.0 + 5.0)


def test_costs_add_up():
    parts = [compute_cost(PROFILE, FLOPS), download_cost(PROFILE, 20), upload_cost(PROFILE, 20)]
    total = sum(parts, Cost())
    assert total == Cost(FLOPS, 20, 20, 22.0, 78.0)
    assert total + Cost() == total
