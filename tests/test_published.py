"""The published figures: complete, sourced, and their averages recomputed."""

import pytest

from gliznet.data.registry import BENCHMARK, registry
from gliznet.lab import LabError
from gliznet.lab.tables import PUBLISHED, published

FILES = sorted(path.stem for path in PUBLISHED.glob("*.csv"))
# The sources average before they round to four decimals, so half a unit of the last may differ.
LAST_DIGIT = 0.51e-4


def scores(revision: str, model: str) -> dict[str, float]:
    rows = published("gliznet_card").query(
        "revision == @revision and model == @model and quantity == 'macro_f1'"
    )
    assert not rows["dataset"].duplicated().any()
    return dict(zip(rows["dataset"], rows["value"].astype(float), strict=True))


@pytest.mark.parametrize("name", FILES)
def test_every_row_has_a_source_and_a_value(name):
    rows = published(name)
    assert len(rows) > 0
    assert rows["source"].str.contains(r"\S.*https://", regex=True).all()
    assert (rows["value"].str.strip() != "").all()


def test_files_are_there():
    assert FILES == ["gliznet_card", "gliznet_training", "hardset", "sce_flops"]
    with pytest.raises(LabError, match="gliznet_card, gliznet_training, hardset, sce_flops"):
        published("nothing")


def test_datasets_are_registry_names():
    names = set(published("gliznet_card")["dataset"]) - {"average"}
    assert names == set(BENCHMARK)
    assert names <= set(registry())


def test_every_printed_average_recomputes():
    checked = 0
    card = published("gliznet_card")
    for revision, model in {*zip(card["revision"], card["model"], strict=True)}:
        values = scores(revision, model)
        if set(values) == {"average"}:
            continue
        assert set(values) == {*BENCHMARK, "average"}, (revision, model)
        mean = sum(values[name] for name in BENCHMARK) / len(BENCHMARK)
        assert values["average"] == pytest.approx(mean, abs=LAST_DIGIT), (revision, model)
        checked += 1
    # Six columns of card-2, six other GliZNet rows of ten scores, three GLiClass models run again.
    assert checked == 6 + 6 + 3


def test_every_printed_difference_recomputes():
    card = published("gliznet_card")
    rows = card[card["quantity"].str.startswith("difference_to:")]
    assert len(rows) == 5
    for row in rows.itertuples():
        own = scores(row.revision, row.model)["average"]
        other = scores(row.revision, row.quantity.removeprefix("difference_to:"))["average"]
        assert float(row.value) == pytest.approx(own - other, abs=1e-9), row.quantity


def test_card_2_is_the_one_that_this_work_compares_with():
    assert scores("card-2", "gliznet-deberta-v3-base")["average"] == 0.6473
    assert scores("card-2", "gliclass-edge-v3.0")["average"] == 0.5809
    assert scores("card-4", "gliznet-deberta-v3-base")["average"] == 0.6888


def test_training_settings_agree_with_themselves_and_the_dataset():
    settings = dict(published("gliznet_training")[["setting", "value"]].itertuples(index=False))
    product = 1
    for factor in ("batch_size_per_device", "devices", "gradient_accumulation"):
        product *= int(settings[factor])
    assert product == int(settings["effective_batch_size"])
    hardset = published("hardset").query("version == 'card-2'")
    for row in hardset.itertuples():
        assert settings[row.quantity] == row.value
    snapshot = published("hardset").query("version == 'snapshot-1aa911e'").set_index("quantity")
    labels = snapshot["value"].astype(int)
    assert labels["test_labels"] == labels["test_positive_labels"] + labels["test_negative_labels"]
