import time

from mnist_flax.study.progress import StudyProgress


def test_a_study_says_what_is_left_of_all_of_it(monkeypatch, capsys):
    """Three replicas of 1,000 images are left: one takes 10 s, then two train together."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = StudyProgress(num_images=3_000, num_replicas=4, num_finished=1)
    shown.start("base, seed 1, epoch 1/1", 1)
    now[0] = 10
    shown.update(1_000, 0.5, 0.75)
    shown.finish_epoch(1_000)
    shown.finish_replica("base, seed 1")
    shown.start("none, seed 1 to 2, epoch 1/1", 2)
    now[0] = 80
    shown.update(500, 0.25, 0.5)
    shown.finish_epoch(1_000)
    shown.finish_replica("none, seed 1")
    shown.finish_replica("none, seed 2")
    assert capsys.readouterr().out.splitlines() == [
        "2/4  base, seed 1  0:00:20 left",
        "none, seed 1 to 2, epoch 1/1 (67% of all, 0:00:40 left)  loss 0.2500, accuracy 50.00%",
        "3/4  none, seed 1  0:00:00 left",
        "4/4  none, seed 2  0:00:00 left",
    ]
