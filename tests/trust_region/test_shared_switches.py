import pytest
from torch.distributions import Distribution

from sb3_trpo.trust_region.shared_switches import skip_distribution_checks


def test_the_distributions_checks_are_switched_on_again() -> None:
    before = Distribution._validate_args

    def interrupted() -> None:
        with skip_distribution_checks():
            assert not Distribution._validate_args
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Distribution._validate_args == before
