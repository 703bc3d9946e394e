"""configs/optimizers.py: what an optimizer reads, and its usual values."""

import graphs


def test_betas_are_the_optimizers_where_none_are_given():
    betas = {name: (config.beta1, config.beta2) for name, config in (
        (name, graphs.config(opt_name=name)) for name in ("adamw", "adafactor", "lion", "sgd"))}
    assert betas == {"adamw": (0.9, 0.95), "adafactor": (0.0, 0.999), "lion": (0.9, 0.99),
                     "sgd": (None, None)}
    given = graphs.config(opt_name="lion", beta1=0.8)
    assert (given.beta1, given.beta2) == (0.8, 0.99)
    assert graphs.config().replace(opt_name="lion").beta2 == 0.99


def test_keys_of_other_optimizers_are_named_once():
    assert graphs.config(ada_epsilon1=1e-30, nesterov=False).notes == []
    assert graphs.config(opt_name="sgd", beta2=0.9, decay_type="adam").notes == [
        "opt_name: sgd does not read beta2, decay_type"]
    for unread, changes in [("beta2", dict(beta2=0.9)),
                            ("decay_exponent", dict(decay_type="adam", decay_exponent=0.7))]:
        assert graphs.config(opt_name="adafactor", **changes).notes == [
            f"opt_name: adafactor does not read {unread}"]
    assert graphs.config(opt_name="sgd", nesterov=True).notes == []
    assert graphs.config(opt_name="sgd", nesterov=True, momentum=0.0).notes == [
        "opt_name: sgd does not read nesterov"]


def test_keys_that_no_schedule_reads_are_named_once():
    changes = dict(lr_decay_end=50, lr_min_ratio=0.2)
    assert graphs.config(**changes).notes == graphs.config(lr_decay="constant").notes == []
    assert graphs.config(lr_decay="constant", **changes).notes == [
        "lr_decay: constant does not read lr_decay_end, lr_min_ratio"]
