"""
Rows and chunks of SB3's rollout samples.
"""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

from sb3_trpo.update.samples import MAX_CHUNK_ELEMENTS, chunks, n_rows, select, whole_rollout

Samples = RolloutBufferSamples | DictRolloutBufferSamples


def make_samples(n: int, observation_space: spaces.Space) -> Samples:
    """
    Draw samples as SB3's buffer gives them.

    :param n: number of steps
    :param observation_space: whose samples are the observations
    :return: what SB3's buffer gives after n steps of one environment
    """
    return next(make_buffer(n, observation_space).get(batch_size=None))


def make_buffer(n: int, observation_space: spaces.Space) -> RolloutBuffer:
    """
    Fill a buffer in which the i-th action is i.

    :param n: number of steps
    :param observation_space: whose samples are the observations
    :return: a full buffer; the i-th action is i
    """
    observation_space.seed(0)
    is_dict = isinstance(observation_space, spaces.Dict)
    buffer_class = DictRolloutBuffer if is_dict else RolloutBuffer
    buffer = buffer_class(n, observation_space, spaces.Box(-1.0, 1.0, (2,)), device="cpu")
    for i in range(n):
        obs = observation_space.sample()
        obs = {key: value[None] for key, value in obs.items()} if is_dict else np.asarray(obs)[None]
        action, reward = np.full((1, 2), i, np.float32), np.array([i], np.float32)
        buffer.add(obs, action, reward, np.zeros(1), th.zeros(1), th.tensor([float(i)]))
    return buffer


BOX = spaces.Box(-1.0, 1.0, (3,))
DICT = spaces.Dict({"camera": spaces.Box(0, 255, (1, 4, 4), np.uint8), "position": BOX})
SPACES = [BOX, DICT, spaces.Discrete(5)]


def flat(samples: Samples) -> list[th.Tensor]:
    fields = [list(field.values()) if isinstance(field, dict) else [field] for field in samples]
    return [tensor for tensors in fields for tensor in tensors]


@pytest.mark.parametrize("space", SPACES, ids=["Box", "Dict", "Discrete"])
@pytest.mark.parametrize("index", [slice(None, None, 3), slice(2, 5), th.tensor([4, 0, 4])], ids=str)
def test_selected_rows(space, index) -> None:
    samples = make_samples(7, space)
    selected = select(samples, index)
    assert type(selected) is type(samples)
    assert all(th.equal(part, whole[index]) for part, whole in zip(flat(selected), flat(samples), strict=True))


def test_missing_fields_stay_missing() -> None:
    samples = make_samples(3, BOX)._replace(returns=None)
    assert select(samples, slice(0, 1)).returns is None


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 20), size=st.integers(1, 25), space=st.sampled_from(SPACES))
def test_chunks_together_are_the_samples(n, size, space) -> None:
    samples = make_samples(n, space)
    parts = chunks(samples, size)
    sizes = [n_rows(part) for part in parts]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == -(-n // size)
    # Every row is in one of them.
    rows = th.cat([th.arange(n)[i :: len(parts)] for i in range(len(parts))])
    for whole, *tensors in zip(flat(samples), *map(flat, parts), strict=True):
        assert th.equal(whole[rows], th.cat(tensors))


@pytest.mark.parametrize("space", SPACES, ids=["Box", "Dict", "Discrete"])
def test_the_whole_rollout_in_order(space) -> None:
    buffer, other = make_buffer(7, space), make_buffer(7, space)
    samples, shuffled = whole_rollout(buffer), next(other.get(batch_size=None))
    assert type(samples) is type(shuffled)
    assert samples.actions[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    order = shuffled.actions[:, 0].long()
    for ours, sb3s in zip(flat(samples), flat(shuffled), strict=True):
        assert th.equal(ours[order], sb3s)
        assert ours.dtype == sb3s.dtype


def test_a_buffer_of_another_kind_is_asked_for_its_samples() -> None:
    class Buffer(RolloutBuffer):
        def get(self, batch_size=None):
            yield "its own samples"

    assert whole_rollout(Buffer(3, BOX, BOX)) == "its own samples"


@pytest.mark.parametrize("space", SPACES, ids=["Box", "Dict", "Discrete"])
def test_chunks_are_views(space) -> None:
    samples = make_samples(7, space)
    for part in (*chunks(samples, 3), *chunks(samples, None)):
        for view, whole in zip(flat(part), flat(samples), strict=True):
            assert view.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def test_by_default_vectors_come_at_once_and_images_in_parts() -> None:
    assert len(chunks(make_samples(1000, BOX), None)) == 1
    images = make_samples(2, spaces.Dict({"camera": spaces.Box(0, 255, (1, 1024, 1024), np.uint8), "position": BOX}))
    # The two keys together are a little more than half of what is allowed.
    assert MAX_CHUNK_ELEMENTS / 2 < 2**20 + 3
    assert [n_rows(part) for part in chunks(images, None)] == [1, 1]
    # An observation beyond it is a chunk of its own.
    huge = make_samples(2, spaces.Box(0, 255, (3, 1024, 1024), np.uint8))
    assert [n_rows(part) for part in chunks(huge, None)] == [1, 1]


@pytest.mark.parametrize(("device", "sizes"), [("cpu", [1, 1, 1, 1]), ("meta", [4])])
def test_an_accelerator_takes_larger_parts(device, sizes) -> None:
    # The device called meta stands for any that is no CPU; its tensors have shapes, and nothing in them.
    images = RolloutBufferSamples(*(th.zeros(4, 3, 1024, 1024, dtype=th.uint8, device=device) for _ in range(6)))
    assert [n_rows(part) for part in chunks(images, None)] == sizes
