"""Which tensor gets which scheme, and why the others are kept."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelzip_cli.defaults import LEAST_WEIGHTS, describe_defaults
from modelzip_cli.errors import BadOption, NoTensorMatches, UnknownScheme, UsageError
from modelzip_cli.recipe import (
    Decision,
    Goal,
    Recipe,
    Rule,
    matches,
    parse_rule,
)
from modelzip_cli.recipe_file import read_recipe, to_toml
from modelzip_cli.tensors import DTYPES, TensorSpec

BIG = (128, 256)


def specs(*names: str, shape: tuple[int, ...] = BIG, dtype: str = "f32") -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, DTYPES[dtype], shape) for name in names}


def decide(recipe: Recipe, *names: str, ties: dict[str, str] | None = None, **kind) -> dict[str, Decision]:
    return recipe.decide(specs(*names, **kind), ties or {})


def schemes(recipe: Recipe, *names: str, **kind) -> dict[str, str]:
    """The canonical scheme of each tensor, `keep` for those that have none."""
    return {name: str(found.scheme or "keep") for name, found in decide(recipe, *names, **kind).items()}


FOUR_BITS = Recipe("int4-g64")
TREATED, CAREFUL, KEPT = "int4-g64", "int8", "keep"

NAMES_IN_THE_WILD = [
    ("bert.encoder.layer.0.attention.self.query.weight", TREATED),
    ("bert.encoder.layer.0.output.dense.weight", TREATED),  # `output` inside a layer is no classifier
    ("bert.encoder.layer.11.attention.output.dense.weight", TREATED),
    ("bert.pooler.dense.weight", TREATED),
    ("bert.embeddings.word_embeddings.weight", CAREFUL),
    ("bert.embeddings.position_embeddings.weight", KEPT),
    ("bert.embeddings.token_type_embeddings.weight", CAREFUL),
    ("model.embed_tokens.weight", CAREFUL),
    ("model.layers.0.self_attn.q_proj.weight", TREATED),
    ("model.layers.0.mlp.gate_proj.weight", TREATED),  # a gate of SwiGLU is no router
    ("model.layers.0.mlp.gate.weight", KEPT),
    ("model.layers.0.block_sparse_moe.gate.weight", KEPT),
    ("model.layers.0.mlp.experts.3.down_proj.weight", TREATED),
    ("encoder.block.1.layer.1.mlp.router.classifier.weight", KEPT),
    ("lm_head.weight", CAREFUL),
    ("score.weight", CAREFUL),
    ("output.weight", CAREFUL),
    ("transformer.wte.weight", CAREFUL),
    ("transformer.wpe.weight", KEPT),
    ("transformer.h.0.attn.c_attn.weight", TREATED),
    ("tok_embeddings.weight", CAREFUL),
    ("layers.0.attention.wq.weight", TREATED),
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", KEPT),
    ("model.decoder.embed_positions.weight", KEPT),
    ("vit.embeddings.position_embeddings", KEPT),
    ("pos_embed", KEPT),
    ("layers.0.blocks.0.attn.relative_position_bias_table", KEPT),
    ("fc.weight", CAREFUL),
    ("module.fc.weight", CAREFUL),
    ("layers.0.fc.weight", TREATED),
    ("layers.3.fc1.weight", TREATED),
    ("head.weight", CAREFUL),
    ("heads.head.weight", CAREFUL),
    ("layer4.1.conv2.weight", TREATED),
    ("classifier.weight", CAREFUL),
    ("features.0.weight", TREATED),
]


@pytest.mark.parametrize(("name", "scheme"), NAMES_IN_THE_WILD, ids=[name for name, _ in NAMES_IN_THE_WILD])
def test_defaults_by_the_names_that_models_have(name, scheme):
    assert schemes(FOUR_BITS, name) == {name: scheme}


def test_only_the_last_of_numbered_classifiers_is_one():
    names = "features.0.weight", "classifier.1.weight", "classifier.4.weight", "classifier.16.weight"
    assert [*schemes(FOUR_BITS, *names).values()] == [TREATED, TREATED, TREATED, CAREFUL]


@pytest.mark.parametrize("number", ["007", "9" * 5000, "²"])
def test_numbers_in_names_are_whatever_people_write(number):
    names = "classifier.1.weight", f"classifier.{number}.weight"
    expected = {names[0]: CAREFUL, names[1]: TREATED} if number != "007" else {names[0]: TREATED, names[1]: CAREFUL}
    assert schemes(FOUR_BITS, *names) == expected


def test_embeddings_and_classifiers_are_treated_like_the_rest_from_8_bits_on():
    for scheme in ("int8", "fixed8", "fp16", "fixed12"):
        names = "model.embed_tokens.weight", "lm_head.weight", "a.weight"
        assert set(schemes(Recipe(scheme), *names).values()) == {scheme}


@pytest.mark.parametrize("scheme", ["int8", "int2-g128", "fp16", "binary"])
def test_routers_and_positional_tables_are_kept_at_any_width(scheme):
    assert set(schemes(Recipe(scheme), "mlp.gate.weight", "wpe.weight").values()) == {KEPT}


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((), "f32", "0-D"),
        ((65536,), "f32", "1-D"),
        ((63, 65), "f32", f"under {LEAST_WEIGHTS:,} weights"),
        ((64, 64), "f32", ""),
        (BIG, "i64", "i64"),
        (BIG, "u8", "u8"),
        (BIG, "bool", "boolean"),
        (BIG, "f8_e4m3", "8-bit float"),
        (BIG, "c64", "c64"),
        (BIG, "bf16", ""),
        (BIG, "f64", ""),
    ],
)
def test_the_reason_says_why_a_tensor_is_kept(shape, dtype, reason):
    found = decide(Recipe(), "w", shape=shape, dtype=dtype)["w"]
    assert (found.scheme is None, found.reason) == (bool(reason), reason)


@pytest.mark.parametrize("scheme", ["fp16", "bf16", "fixed16"])
def test_a_tensor_that_would_not_get_smaller_is_kept(scheme):
    assert decide(Recipe(scheme), "w", dtype="f16")["w"] == Decision(None, "would not get smaller")


@pytest.mark.parametrize("suffix", [".scale", "_scale", "_scale_inv"])
def test_a_tensor_with_the_scale_of_another_tool_beside_it_is_kept_and_so_is_the_scale(suffix):
    found = decide(Recipe(), "a.weight", f"a.weight{suffix}", "b.weight")
    assert found["a.weight"].reason == found[f"a.weight{suffix}"].reason == "quantized by another tool"
    assert found["b.weight"].scheme is not None


def test_ecq_gives_embeddings_classifiers_and_positional_tables_a_fine_step_where_they_are_few():
    layers = [f"layers.{number}.weight" for number in range(64)]
    few, many = ["tok.weight", "wpe.weight", "lm_head.weight"], [*layers, "tok.weight", "layers.0.router.weight"]
    for recipe in (Recipe("ecq", goal=Goal("bpw", 3)), Recipe("ecq", goal=Goal("ratio", 8))):
        found = schemes(recipe, *layers, *few)
        assert {found[name] for name in few} == {"ecq-s0.02"}
        assert {found[name] for name in layers} == {"ecq"}
        assert schemes(recipe, *layers[:8], *few)["tok.weight"] == "ecq"  # they would take the bits of the others
    alike = Recipe("ecq", goal=Goal("min_sqnr", 20))
    assert schemes(alike, *layers, *few)["tok.weight"] == "ecq"
    assert schemes(Recipe("ecq-s0.3-t1"), *many)["tok.weight"] == "ecq-s0.02-t1"
    assert schemes(Recipe("ecq-s0.3"), *many)["layers.0.router.weight"] == "lossless"
    assert schemes(Recipe("ecq-s0.01"), *many)["tok.weight"] == "ecq-s0.01"
    assert schemes(Recipe("ecq-s0.3", rules=(Rule("tok", "ecq-s0.3"),)), *many)["tok.weight"] == "ecq-s0.3"


def test_only_narrows_and_never_overrides_the_defaults():
    names = "a.0.weight", "a.1.weight", "a.gate.weight", "b.weight"
    found = decide(Recipe("int4-g64", only=("a.*",)), *names)
    assert {name: found[name].scheme is not None for name in names} == dict(zip(names, (1, 1, 0, 0), strict=True))
    assert found["b.weight"].reason == "not in --only"


def test_skip_adds_to_the_defaults_and_wins_over_only():
    names = "a.0.weight", "a.1.weight", "a.gate.weight"
    found = decide(Recipe(only=("a.*",), skip=("*.1",)), *names)
    assert [found[name].reason for name in names] == ["", "--skip", "router: default"]


def test_set_overrides_only_skip_and_the_defaults():
    rules = (Rule("mlp.gate", "int4-g32"), Rule("b", "fp16"))
    found = schemes(Recipe("int8", only=("a",), skip=("b",), rules=rules), "a.weight", "b.weight", "mlp.gate.weight")
    assert found == {"a.weight": "int8", "b.weight": "fp16", "mlp.gate.weight": "int4-g32"}


def test_the_last_rule_that_matches_wins():
    rules = (Rule("*", "int4-g64"), Rule("a*", "keep"), Rule("a.0*", "fp16"))
    found = schemes(Recipe(rules=rules), "a.0.weight", "a.1.weight", "b.weight")
    assert [*found.values()] == ["fp16", "keep", "int4-g64"]


def test_set_with_a_wildcard_means_matrices_and_with_a_full_name_any_floats():
    for pattern, expected in (("*", KEPT), ("re:bias", KEPT), ("bias", "fp16")):
        assert schemes(Recipe(rules=(Rule(pattern, "fp16"),)), "bias", shape=(10,)) == {"bias": expected}
        assert schemes(Recipe(rules=(Rule(pattern, "fp16"),)), "bias", shape=(63, 65)) == {"bias": expected}
    assert schemes(Recipe(rules=(Rule("ids", "fp16"),)), "ids", dtype="i64") == {"ids": KEPT}


def test_the_strictest_rule_of_the_names_of_a_tie_holds():
    names = "transformer.blocks.0.weight", "lm_head.weight"
    assert schemes(FOUR_BITS, *names, ties={names[1]: names[0]}) == {names[0]: CAREFUL}
    names = "model.embed_tokens.weight", "decoder.weight", "wpe.weight"
    assert schemes(FOUR_BITS, *names, ties={names[1]: names[0], names[2]: names[0]}) == {names[0]: KEPT}


def test_in_the_dense_layout_integers_are_taken_although_the_tensor_keeps_its_size():
    assert schemes(Recipe("int8", "dense"), "w", dtype="f16") == {"w": "int8"}
    assert schemes(Recipe("bf16", "dense"), "w", dtype="f16") == {"w": KEPT}


@pytest.mark.parametrize(
    ("pattern", "name", "selected"),
    [
        ("a.0", "a.0.weight", True),
        ("a.0.weight", "a.0.weight", True),
        ("a.0", "a.0.bias", False),
        ("a.?", "a.0.weight", True),
        ("a.[01]", "a.1.weight", True),
        ("A.0", "a.0.weight", False),
        ("*", "", True),
        ("re:a\\.\\d+\\.weight", "a.12.weight", True),
        ("re:a", "ab", False),
        ("re:(?i)A.*", "abc", True),
    ],
)
def test_a_pattern_selects_names_with_or_without_their_weight(pattern, name, selected):
    assert matches(pattern, name) is selected


@pytest.mark.parametrize("option", ["--only", "--skip", "--set"])
def test_a_pattern_without_a_match_names_the_closest_tensor(option):
    pattern = "layer.0.*"
    field = {"--only": "only", "--skip": "skip", "--set": "rules"}[option]
    recipe = Recipe(**{field: (Rule(pattern, "keep"),) if field == "rules" else (pattern,)})
    with pytest.raises(NoTensorMatches) as refused:
        recipe.check_patterns(["layers.0.weight", "norm.bias"], "m.pth")
    assert str(refused.value) == (
        f"m.pth: {option} 'layer.0.*' matches no tensor; the closest name is 'layers.0.weight'"
    )


def test_scheme_names_are_put_into_canonical_form():
    recipe = Recipe("int4-mse-g128", rules=(Rule("a", "int8-channel"),))
    assert (recipe.scheme, recipe.rules) == ("int4-g128-mse", (Rule("a", "int8"),))


def test_what_is_no_scheme_layout_or_regular_expression_is_refused_at_once():
    with pytest.raises(UnknownScheme, match="itn4"):
        Recipe("itn4")
    with pytest.raises(BadOption):
        Recipe(rules=(Rule("a", "int4-zzz"),))
    with pytest.raises(UsageError, match="no layout 'flat'"):
        Recipe(layout="flat")
    with pytest.raises(UsageError, match="not a regular expression"):
        Recipe(only=("re:(",))


@pytest.mark.parametrize(
    ("text", "rule"),
    [("a*=int8", Rule("a*", "int8")), ("re:a=b=keep", Rule("re:a=b", "keep")), (" a =fp16", Rule(" a ", "fp16"))],
)
def test_set_is_cut_at_its_last_equals_sign(text, rule):
    assert parse_rule(text) == rule


@pytest.mark.parametrize("text", ["", "int8", "=int8"])
def test_set_without_a_pattern_or_a_scheme_is_refused(text):
    with pytest.raises(UsageError, match="GLOB=SCHEME"):
        parse_rule(text)


def texts() -> st.SearchStrategy[str]:
    """Any text that a command line can carry, but a regular expression has to be one."""
    return st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: not text.startswith("re:"))


@given(
    scheme=st.sampled_from(["int8", "int4-g64", "fixed8-mse", "keep"]),
    layout=st.sampled_from(["native", "dense"]),
    only=st.lists(texts()),
    skip=st.lists(texts()),
    rules=st.lists(st.builds(Rule, texts(), st.sampled_from(["keep", "fp16", "int4-g32"]))),
    keep_extras=st.booleans(),
    allow_nonfinite=st.booleans(),
    key=st.none() | texts().filter(bool),
)
@example(
    scheme="int8",
    layout="native",
    only=['"""', "\\", "\x00\x7f\n\r\t", "[a] # = 'b'"],
    skip=["é漢🙂\u202e"],
    rules=[],
    keep_extras=False,
    allow_nonfinite=False,
    key="a.b",
)
def test_a_recipe_written_as_toml_reads_back_the_same(**fields):
    recipe = Recipe(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    assert read_recipe(to_toml(recipe.to_json()), "recipe.toml") == recipe
    assert Recipe.from_json(recipe.to_json(), "recipe.toml") == recipe


def test_a_recipe_as_toml_is_what_a_person_would_write():
    recipe = Recipe("int4-g64", only=("layers.*",), rules=(Rule("lm_head", "keep"),), keep_extras=True)
    assert to_toml(recipe.to_json()) == (
        'scheme = "int4-g64"\nlayout = "native"\nonly = ["layers.*"]\nkeep_extras = true\n'
        '\n[[set]]\nmatch = "lm_head"\nscheme = "keep"\n'
    )


def test_an_empty_recipe_is_the_default():
    assert read_recipe("", "recipe.toml") == Recipe()


@pytest.mark.parametrize(
    "text",
    [
        "shceme = 'int8'",
        "scheme = 8",
        "scheme = 'int8'\nscheme = 'int4'",
        "only = 'a*'",
        "only = [1]",
        "only = {a = 1}",
        "set = 'a=int8'",
        "[[set]]\nmatch = 'a'",
        "[[set]]\nmatch = 'a'\nscheme = 'int8'\nbits = 4",
        "set = [1]",
        "keep_extras = 'no'",
        "allow_nonfinite = 1",
        "key = 1",
        "layout = 'flat'",
        "= 1",
        "scheme",
    ],
)
def test_a_recipe_with_unknown_keys_or_wrong_types_is_refused_with_its_name(text):
    with pytest.raises(UsageError, match=r"recipe\.toml|no layout"):
        read_recipe(text, "recipe.toml")


def test_the_printed_defaults_name_every_word_of_the_rules():
    printed = " ".join(" ".join(row) for row in describe_defaults())
    for word in ("router", "gate", "wpe", "embed*", "lm_head", "classifier.N", "_scale_inv", f"{LEAST_WEIGHTS:,}"):
        assert word in printed
