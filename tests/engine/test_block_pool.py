"""The reference counts of KV blocks."""

import random

import pytest
from friendli_runtime._core import BlockPool


def test_a_block_is_free_again_only_after_its_last_owner_released_it():
    pool = BlockPool(2)
    block = pool.allocate()
    pool.retain(block)
    pool.release(block)
    assert (pool.num_used, pool.ref_count(block)) == (1, 1)
    pool.release(block)
    assert (pool.num_free, pool.ref_count(block)) == (2, 0)


def test_misuse_is_an_error_and_changes_nothing():
    pool = BlockPool(1)
    block = pool.allocate()
    for misuse in (pool.allocate, lambda: pool.retain(1), lambda: pool.release(-1), lambda: pool.release(1)):
        with pytest.raises(RuntimeError, match="block pool"):
            misuse()
    pool.release(block)
    with pytest.raises(RuntimeError, match="block 0 is not in use"):
        pool.release(block)
    assert pool.num_free == 1


def test_a_pool_of_no_blocks_is_refused():
    with pytest.raises(ValueError, match="num_blocks is 0"):
        BlockPool(0)


@pytest.mark.parametrize("seed", range(5))
def test_random_use_never_hands_out_a_block_that_is_owned(seed):
    rng = random.Random(seed)
    pool = BlockPool(8)
    owners: list[int] = []
    for _ in range(500):
        if pool.num_free and rng.random() < 0.4:
            block = pool.allocate()
            assert block not in owners
            owners.append(block)
        elif owners and rng.random() < 0.5:
            pool.release(owners.pop(rng.randrange(len(owners))))
        elif owners:
            pool.retain(owners[0])
            owners.append(owners[0])
        assert pool.num_used == len(set(owners))
        assert all(pool.ref_count(block) == owners.count(block) for block in range(8))
