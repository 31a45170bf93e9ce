"""Schedules against their closed form."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf import schedules


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("initial", "final"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0)])
def test_polynomial_decay_is_its_closed_form(power, initial, final):
    begin, end = 7, 40
    schedule = schedules.PolynomialDecay(
        end, begin_step=begin, initial=initial, final=final, power=power
    )
    for step in range(60):
        p = np.clip((step - begin) / (end - begin), 0, 1)
        expected = final + (initial - final) * (1 - p) ** power
        assert schedule(step) == pytest.approx(expected, abs=1e-12), step


def test_frequency_holds_the_value_and_the_end_is_exact():
    schedule = schedules.PolynomialDecay(25, begin_step=3, power=1.0, frequency=10)
    seen = [schedule(step) for step in range(30)]
    assert seen[:13] == [0.0] * 13
    assert seen[13:23] == [pytest.approx(10 / 22)] * 10
    assert seen[23:25] == [pytest.approx(20 / 22)] * 2
    assert seen[25:] == [1.0] * 5


def test_constant_schedule():
    schedule = schedules.ConstantSchedule(0.5, begin_step=4)
    assert [schedule(step) for step in (0, 3, 4, 100)] == [0.0, 0.0, 0.5, 0.5]


def test_any_kind_of_step():
    schedule = schedules.PolynomialDecay(10, power=1.0)
    steps = [5, np.int64(5), tf.constant(5), tf.Variable(5), keras.Variable(5, dtype="int64")]
    assert [schedule(step) for step in steps] == [0.5] * len(steps)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.ConstantSchedule(0.3, begin_step=2),
        schedules.PolynomialDecay(9, begin_step=1, initial=0.1, final=0.9, frequency=3),
    ],
    ids=["constant", "polynomial"],
)
def test_config_round_trip(schedule):
    again = type(schedule).from_config(schedule.get_config())
    assert [again(step) for step in range(20)] == [schedule(step) for step in range(20)]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: schedules.ConstantSchedule(1.5), "value must be between 0.0 and 1.0.*1.5"),
        (lambda: schedules.ConstantSchedule(begin_step=-1), "begin_step must be at least 0"),
        (lambda: schedules.PolynomialDecay(5, begin_step=5), "end_step must be at least 6"),
        (lambda: schedules.PolynomialDecay(5, power=0), "power must be at least.*Received: 0"),
        (lambda: schedules.PolynomialDecay(5, frequency=0), "frequency must be at least 1"),
        (lambda: schedules.PolynomialDecay(5.5), "end_step must be an integer.*5.5"),
        (lambda: schedules.PolynomialDecay("a"), "end_step must be an integer. Received: 'a'"),
        (lambda: schedules.PolynomialDecay(5, power="a"), "power must be a finite number"),
        (lambda: schedules.PolynomialDecay(5, power=float("inf")), "power must be a finite number"),
        (lambda: schedules.ConstantSchedule("a"), "value must be a finite number. Received: 'a'"),
    ],
)
def test_arguments_are_checked(build, words):
    with pytest.raises((TypeError, ValueError), match=words):
        build()


def test_a_schedule_of_ones_own_is_checked_when_called():
    class Wrong(schedules.Schedule):
        def __init__(self, value):
            self.value = value

        def fade(self, step):
            return self.value

    with pytest.raises(ValueError, match="Wrong must give a fade.*2.0 at step 3"):
        Wrong(2.0)(3)
    with pytest.raises(TypeError, match="Wrong must give a fade.*'0.5' at step 3"):
        Wrong("0.5")(3)
