"""Scenes and captions have the law that is claimed: groups, pixels, words."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.stats

import mmcl_theory as mt
from sims.digits import captions, scenes
from sims.digits.config import parse_groups

N = 4000
KINDS = parse_groups("01234:56789")
# N scenes always, as every other number would be compiled again.
compiled_draw = jax.jit(lambda key, items, *law: scenes.draw(key, items, N, *law))
compiled_write = jax.jit(captions.write, static_argnums=1)


def draw(seed, items, p_spu, hue_contrast=1.0, p_companion=None):
    return jax.device_get(compiled_draw(jax.random.key(seed), items, p_spu, hue_contrast, p_companion))


@pytest.fixture(scope="module")
def seen(source):
    return draw(0, source.train, 0.9, p_companion=0.75)


def assert_share(found, expected, alpha=1e-6):
    """An exact binomial test of each share of N."""
    for share in np.atleast_1d(found):
        assert scipy.stats.binomtest(round(float(share) * N), N, expected).pvalue > alpha, (share, expected)


@pytest.mark.costly
def test_groups_have_their_shares(seen):
    assert_share((np.asarray(seen.label) == 1).mean(), 0.5)
    aligned = np.asarray(seen.label) == np.asarray(seen.attribute)
    assert_share(aligned.mean(), 0.9)
    with pytest.raises(AssertionError):
        assert_share(aligned.mean(), 0.86)
    for shade in range(3):
        assert_share((np.asarray(seen.shade) == shade).mean(), 1 / 3)


def test_each_scene_may_have_its_own_p_spu(source):
    p = np.repeat([1.0, 0.0], N // 2)
    found = draw(1, source.train, p)
    np.testing.assert_array_equal(np.asarray(found.label) == np.asarray(found.attribute), p == 1)
    assert found.companion is None and found.image.shape == (N, 12, 12, 3)


def test_items_are_of_the_labels_kind_and_small_digits_of_either(seen):
    kinds, small = np.array(KINDS), np.asarray(seen.companion)
    np.testing.assert_array_equal(kinds[np.asarray(seen.item)], seen.label)
    assert_share((small >= 0).mean(), 0.75)
    there = small >= 0
    z = np.corrcoef(kinds[small[there]], np.asarray(seen.label)[there])[0, 1] * there.sum() ** 0.5
    assert abs(z) < scipy.stats.norm.isf(1e-6 / 2)
    assert set(small[there]) == set(range(10))


@pytest.mark.costly
@pytest.mark.parametrize("once", [False, True])
def test_the_digit_predicts_the_label_with_the_core_s_accuracy(source, once):
    """Colours, and what captions name, go with the label; a digit of the other class leaves no trace in the image."""
    items = jax.tree.map(lambda x: np.concatenate([x] * 3) if np.ndim(x) else x, source.train)
    kinds = np.array(KINDS)
    items = jax.tree.map(lambda x: x[np.argsort(kinds[items.item], kind="stable")] if np.ndim(x) else x, items)
    items = dataclasses.replace(items, low=np.int32((kinds[items.item] < 0).sum()))

    @jax.jit
    def lay_out(key):
        layout = scenes.lay_out(key, items, N, 0.9, once=once, core_accuracy=0.84)
        return layout, scenes.contents(items, layout)

    layout, found = jax.device_get(lay_out(jax.random.key(9)))
    assert not once or len(np.unique(layout.index)) == N
    right = kinds[found.item] == found.label
    assert_share(right.mean(), 0.84)
    with pytest.raises(AssertionError):
        assert_share(right.mean(), 0.80)
    assert_share((found.label == found.attribute).mean(), 0.9)
    np.testing.assert_array_equal(found.item, items.item[layout.index])
    np.testing.assert_array_equal(kinds[found.named_item], found.label)
    np.testing.assert_array_equal(found.named_item[right], found.item[right])
    assert len(set(found.named_item[~right])) == 10
    z = np.corrcoef(right, found.attribute * found.label)[0, 1] * N**0.5
    assert abs(z) < scipy.stats.norm.isf(1e-6 / 2)


def test_captions_name_the_digit_of_a_noisy_label(seen):
    named = (seen.item + 1) % 10
    noisy = dataclasses.replace(seen, named=named, label=np.array(KINDS)[named])
    assert written(noisy, 1, 1, 1)[0] == told(dataclasses.replace(noisy, item=named), 0) != told(seen, 0)


@pytest.mark.costly
def test_contrast_brings_the_hues_together(source):
    for contrast in (1.0, 0.25, 0.0):
        found = draw(8, source.train, 0.5, hue_contrast=contrast)
        corner = np.asarray(found.image)[:, 0, 0] / np.array(scenes.SHADES)[np.asarray(found.shade)][:, None]
        apart = [corner[np.asarray(found.attribute) == a].mean(0) for a in (1, -1)]
        wanted = contrast * (np.array(scenes.HUES[1]) - np.array(scenes.HUES[0]))
        np.testing.assert_allclose(apart[0] - apart[1], wanted, atol=6 * 0.035 / (N / 4) ** 0.5)


@pytest.mark.costly
def test_every_image_of_a_kind_is_equally_likely(source):
    few = jax.tree.map(lambda x: x, source.train)
    keep = np.r_[0:4, int(few.low) : int(few.low) + 4]
    few = dataclasses.replace(
        few, ink=few.ink[keep], small=few.small[keep], item=np.arange(8), style=few.style[keep], low=np.int32(4)
    )
    found = draw(2, few, 0.5)
    counts = np.bincount(np.asarray(found.item), minlength=8)
    assert scipy.stats.chisquare(counts).pvalue > 1e-6
    assert scipy.stats.chisquare(counts, np.r_[counts.sum() / 8 * np.linspace(0.8, 1.2, 8)]).pvalue < 1e-6


def test_pixels_are_ink_over_a_background_of_the_attributes_hue(source, seen):
    image = np.asarray(seen.image)
    background = image[:, 0, 0]
    hue = np.array(scenes.HUES)[(np.asarray(seen.attribute) + 1) // 2]
    expected = hue * np.array(scenes.SHADES)[np.asarray(seen.shade)][:, None]
    spread = (background - expected).std(0)
    np.testing.assert_allclose(spread, 0.02, rtol=0.1)
    # x - b = s (ink - b): one line in colour space for each image, whose end is grey and as bright as the ink.
    beyond = (image - background[:, None, None]).reshape(N, -1, 3)
    _, singular, direction = np.linalg.svd(beyond, full_matrices=False)
    assert (singular[:, 1] < 1e-12 * singular[:, 0]).all()
    ratio = direction[:, 0, 0] / direction[:, 0, 2]
    ink = (background[:, 0] - ratio * background[:, 2]) / (1 - ratio)
    assert scipy.stats.kstest(ink, scipy.stats.uniform(0.85, 0.15).cdf).pvalue > 1e-6
    assert scipy.stats.kstest(ink, scipy.stats.uniform(0.83, 0.15).cdf).pvalue < 1e-6


def test_the_small_digit_stands_in_its_strip(source):
    blank = dataclasses.replace(source.train, ink=np.zeros_like(source.train.ink))
    found = draw(3, blank, 0.5, p_companion=1.0)
    image = np.asarray(found.image)
    assert image.shape == (N, 12, 18, 3)
    moved = np.abs(image - image[:, :1, :1]).max(-1) > 0.05
    assert not moved[:, :, :12].any()
    above, below = moved[:, :6, 12:].any((1, 2)), moved[:, 6:, 12:].any((1, 2))
    assert (above ^ below).all() and scipy.stats.binomtest(int(above.sum()), N).pvalue > 1e-6
    none = np.asarray(draw(3, blank, 0.5, p_companion=0.0).image)
    assert (none == none[:, :1, :1]).all()


WORDS = captions.lexicon("mnist")


def write(seed, seen, pi_core, pi_spu, pi_companion):
    return np.asarray(compiled_write(jax.random.key(seed), WORDS, seen, mt.captions(pi_core, pi_spu), pi_companion))


def written(seen, pi_core, pi_spu, pi_companion=0.0):
    return [WORDS.decode(t) for t in write(5, seen, pi_core, pi_spu, pi_companion)]


def told(seen, i):
    """All that can be said of a scene, by the grammar, from its fields."""
    core = [WORDS.items[seen.item[i]], *(pair[s] for pair, s in zip(captions.STYLES, seen.style[i], strict=True))]
    hue = captions.HUE_NAMES[(int(seen.attribute[i]) + 1) // 2]
    beside = f" with a tiny {WORDS.items[seen.companion[i]]} beside" if seen.companion[i] >= 0 else ""
    return (
        f"a {WORDS.kinds[(int(seen.label[i]) + 1) // 2]} digit {' '.join(core)} on a"
        f" {captions.SHADE_NAMES[seen.shade[i]]} {hue} background{beside}"
    )


def test_full_captions_say_what_is_there(seen):
    found = written(seen, 1, 1, 1)
    assert all(found[i] == told(seen, i) for i in range(200))


def test_label_only_captions_name_the_class_alone(seen):
    assert set(written(seen, 0, 0)) == {"a low digit", "a high digit"}
    label = np.asarray(seen.label)
    assert all((c == "a high digit") == (y == 1) for c, y in zip(written(seen, 0, 0), label, strict=True))


def test_mentions_have_their_shares_and_are_independent(seen):
    found = [c.split() for c in written(seen, 0.3, 0.8, 0.6)]
    item = np.array([not set(WORDS.items).isdisjoint(w[3:4]) for w in found])
    slant, stroke = (np.array([not set(pair).isdisjoint(w) for w in found]) for pair in captions.STYLES[:2])
    background = np.array(["background" in w for w in found])
    beside = np.array(["beside" in w for w in found])
    assert not (beside & (np.asarray(seen.companion) < 0)).any()
    for mention, share in ((item, 0.3), (slant, 0.3), (stroke, 0.3), (background, 0.8), (beside, 0.75 * 0.6)):
        assert_share(mention.mean(), share)
    for one, two in ((item, slant), (slant, stroke), (item, background), (background, beside)):
        z = np.corrcoef(one, two)[0, 1] * N**0.5
        assert abs(z) < scipy.stats.norm.isf(1e-6 / 8)
    with pytest.raises(AssertionError):
        assert_share(item.mean(), 0.35)


def test_captions_without_a_companion_never_tell_of_one(source):
    alone = draw(4, source.train, 0.9)
    assert not any("beside" in c for c in written(alone, 1, 1, 1))


@pytest.mark.parametrize("companion", [False, True])
def test_tokens_come_back(source, companion):
    seen = draw(6, source.train, 0.9, p_companion=0.5 if companion else None)
    tokens = write(7, seen, 0.5, 0.5, 0.5)
    assert tokens.shape == (N, captions.length(companion))
    for row in tokens[:200]:
        np.testing.assert_array_equal(WORDS.encode(WORDS.decode(row), len(row)), row)
        end = row.tolist().index(captions.END)
        assert (row[end + 1 :] == captions.PAD).all() and (row[:end] > captions.END).all()


def test_text_that_cannot_be_encoded_is_refused():
    with pytest.raises(ValueError, match="got 'wolf'"):
        WORDS.encode("a low wolf", 10)
    with pytest.raises(ValueError, match="at most 2 words, got 3"):
        WORDS.encode("a low digit", 3)
    assert captions.lexicon("fashion").decode(captions.lexicon("fashion").encode("a first garment t-shirt", 9))
