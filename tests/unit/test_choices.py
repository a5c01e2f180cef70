"""What people can choose from: trees in the config, and lists in a task's data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import LabelingConfigError, TaskError
from backend.labelstudio.annotations import labels_of
from backend.labelstudio.choices import Choice, wordings
from backend.labelstudio.config import Control, Shortlist, parse_labeling_config
from backend.labelstudio.task_data import TaskChoices, with_options

TREE = (
    '<Choice value="Clothes"><Choice value="Shirt"/><Choice value="Trousers" alias="trs"/></Choice>'
    '<Choice value="Cars"><Choice value="Red"/></Choice>'
)


def view(*tags: str) -> str:
    return f'<View><Image name="img" value="$image"/>{"".join(tags)}</View>'


def taxonomy(attributes: str = "", inside: str = TREE) -> str:
    return f'<Taxonomy name="kind" toName="img" {attributes}>{inside}</Taxonomy>'


def the_control(*tags: str) -> Control:
    (control,) = parse_labeling_config(view(*tags)).controls
    return control


def the_reason(*tags: str) -> str:
    config = parse_labeling_config(view(*tags))
    assert config.controls == ()
    (reason,) = config.left_alone
    return reason


def by_task(inside: str = "") -> Control:
    return the_control(f'<Choices name="kind" toName="img" value="$options">{inside}</Choices>')


def values(control: Control, data: dict[str, object]) -> list[str]:
    return [choice.value for choice in TaskChoices(control).of(data)]


def test_the_choices_of_a_taxonomy_are_its_paths() -> None:
    control = the_control(taxonomy())

    assert control.kind == "taxonomy"
    assert [choice.path for choice in control.choices] == [
        ("Clothes",),
        ("Clothes", "Shirt"),
        ("Clothes", "trs"),
        ("Cars",),
        ("Cars", "Red"),
    ]
    assert control.values[1:3] == ("Clothes / Shirt", "Clothes / trs")
    assert [choice.shown for choice in control.choices if choice.is_leaf] == [
        "Clothes / Shirt",
        "Clothes / Trousers",
        "Cars / Red",
    ]


def test_leaves_only_leaves_out_what_leads_further() -> None:
    control = the_control(taxonomy('leafsOnly="true"'))
    assert control.values == ("Clothes / Shirt", "Clothes / trs", "Cars / Red")


@pytest.mark.parametrize(
    ("attributes", "multiple"),
    [("", False), ('maxUsages="1"', False), ('maxUsages="3"', True), ('maxUsages="x"', False)],
)
def test_several_paths_may_be_chosen_where_max_usages_says_so(
    attributes: str, multiple: bool
) -> None:
    assert the_control(taxonomy(attributes)).multiple is multiple


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ('apiUrl="https://example.com/tree.json"', "apiUrl"),
        ('perRegion="true"', "perRegion"),
        ('perItem="true"', "perItem"),
        ('labeling="true"', "labeling"),
    ],
)
def test_a_taxonomy_that_cannot_be_predicted_is_left_alone(attributes: str, reason: str) -> None:
    assert reason in the_reason(taxonomy(attributes))


@pytest.mark.parametrize("inside", ["", '<Choice value="A"/>', '<Choice value=" "/>'])
def test_a_taxonomy_with_too_few_paths_is_left_alone(inside: str) -> None:
    assert "too few" in the_reason(taxonomy(inside=inside))


def test_rating_and_pairwise_are_left_alone_with_a_sentence() -> None:
    config = parse_labeling_config(
        view(
            '<Rating name="stars" toName="img"/>',
            '<Image name="other" value="$other"/><Pairwise name="pw" toName="img,other"/>',
            taxonomy(),
        )
    )
    assert [control.name for control in config.controls] == ["kind"]
    assert [sentence.split(" is left alone: ")[0] for sentence in config.left_alone] == [
        '<Rating name="stars">',
        '<Pairwise name="pw">',
    ]


def test_of_siblings_that_look_the_same_the_first_counts_as_in_label_studio() -> None:
    inside = (
        '<Choice value="A"><Choice value="x"/></Choice><Choice value="A"><Choice value="y"/>'
        '</Choice><Choice value="B"/>'
    )
    assert the_control(taxonomy(inside=inside)).values == ("A", "A / x", "B")


def test_paths_that_read_the_same_are_told_apart() -> None:
    inside = '<Choice value="A"><Choice value="B"/></Choice><Choice value="A / B"/>'
    control = the_control(taxonomy(inside=inside))

    assert len(set(control.values)) == 3
    assert control.value_of(["A", "B"]) == "A / B"
    assert control.value_of(["A / B"]) == '["A / B"]'


def test_a_path_that_the_tree_does_not_have_is_none_of_its_values() -> None:
    control = the_control(taxonomy(inside='<Choice value="A / B"/><Choice value="C"/>'))
    assert control.value_of(["A", "B"]) not in control.values


def test_a_tree_of_20_000_levels_is_refused() -> None:
    deep = '<Choice value="a">' * 20_000 + "</Choice>" * 20_000
    with pytest.raises(LabelingConfigError, match="nested deeper"):
        parse_labeling_config(view(taxonomy(inside=deep)))


def test_few_tags_that_make_very_long_paths_are_refused() -> None:
    levels = 190
    inside = '<Choice value="B"/>' * 2 + "".join(f'<Choice value="{n}"/>' for n in range(20_000))
    deep = f'<Choice value="{"x" * 2000}">' * levels + inside + "</Choice>" * levels
    with pytest.raises(LabelingConfigError, match="characters in all paths"):
        parse_labeling_config(view(taxonomy(inside=deep)))


def test_more_paths_than_may_be_predicted_are_refused() -> None:
    inside = "".join(f'<Choice value="{number}"/>' for number in range(20_001))
    with pytest.raises(LabelingConfigError, match="20000"):
        parse_labeling_config(view(taxonomy(inside=inside)))


@given(
    st.recursive(
        st.just("<Choice/>"),
        lambda inner: st.lists(inner).map(
            lambda tags: f'<Choice value="{len(tags)}">{"".join(tags)}</Choice>'
        ),
    )
)
def test_any_tree_gives_distinct_paths_and_values(tree: str) -> None:
    config = parse_labeling_config(view(taxonomy(inside=tree + '<Choice value="q"/>' + TREE)))
    (control,) = config.controls
    assert len(set(control.values)) == len({choice.path for choice in control.choices})


def test_an_annotation_of_a_path_is_a_label() -> None:
    control = the_control(taxonomy())

    def annotation(*paths: list[str]) -> dict[str, object]:
        value = {"taxonomy": [*paths]}
        item = {"from_name": "kind", "to_name": "img", "type": "taxonomy", "value": value}
        return {"result": [item]}

    labels = labels_of(
        control,
        {
            1: [annotation(["Clothes", "trs"])],
            2: [annotation(["Clothes"])],
            3: [annotation(["Clothes", "Hat"])],
            4: [annotation(["Cars", "Red"], ["Clothes", "Shirt"])],
            5: [annotation()],
            6: [annotation([])],
        },
    )

    assert labels.values == {1: {"Clothes / trs"}, 2: {"Clothes"}}
    assert labels.unknown == 1
    assert labels.several == 1


def test_an_annotation_that_is_no_taxonomy_is_no_vote() -> None:
    control = the_control(taxonomy())
    for value in ({"taxonomy": "Clothes"}, {"taxonomy": [["Clothes", 3]]}, {"choices": ["Cars"]}):
        item = {"from_name": "kind", "to_name": "img", "type": "taxonomy", "value": value}
        assert labels_of(control, {1: [{"result": [item]}]}).values == {}


def test_a_name_that_paths_share_has_what_makes_them_differ_beside_it() -> None:
    def choice(*path: str) -> Choice:
        return Choice(" / ".join(path), (path[-1],), path, path[:-1])

    choices = [
        choice("Cars", "Red"),
        choice("Clothes", "Shirts", "Other"),
        choice("Cars", "Other"),
        choice("Shoes", "Shirts", "Other"),
    ]

    assert wordings(choices) == [
        ("Red",),
        ("Other Shirts Clothes",),
        ("Other Cars",),
        ("Other Shirts Shoes",),
    ]


def test_names_of_flat_choices_stay_as_they_are() -> None:
    choices = [Choice("a", ("a", "shared")), Choice("b", ("shared", "b"))]
    assert wordings(choices) == [("a", "shared"), ("shared", "b")]


def test_choices_by_task_are_the_configs_and_those_in_the_data() -> None:
    control = by_task('<Choice value="Other"/>')
    data: dict[str, object] = {
        "options": [{"value": "Tee"}, {"value": "Shoe", "alias": "sh"}, {"value": "Tee"}]
    }

    assert control.options == "options"
    assert values(control, data) == ["Other", "Tee", "sh"]
    assert values(control, {}) == ["Other"]


@pytest.mark.parametrize(
    "options",
    ["Tee", None, 5, {}, [], ["Tee"], [{"alias": "x"}], [{"value": 5}], [{"value": "$image"}]],
)
def test_what_label_studio_shows_as_no_choice_is_none(options: object) -> None:
    with pytest.raises(TaskError, match="'options'"):
        values(by_task(), {"options": options})


def test_data_without_the_field_are_said_to_lack_it() -> None:
    with pytest.raises(TaskError, match="no field 'options'"):
        values(by_task(), {"image": "x"})


def test_choices_by_task_may_be_a_tree_for_a_taxonomy() -> None:
    control = the_control(taxonomy('value="$tree"', ""))
    tree = [{"value": "Tops", "children": [{"value": "Tee", "alias": "t"}]}, {"value": "Shoe"}]
    assert values(control, {"tree": tree}) == ["Tops", "Tops / t", "Shoe"]


def test_a_taxonomy_with_choices_of_its_own_does_not_read_the_data_as_in_label_studio() -> None:
    assert the_control(taxonomy('value="$tree"')).options is None


def test_too_many_or_too_deep_options_are_refused() -> None:
    tree: list[object] = []
    for _ in range(240):
        tree = [{"value": "a", "children": tree}]
    for control, options in (
        (by_task(), [{"value": str(number)} for number in range(10_001)]),
        (the_control(taxonomy('value="$options"', "")), tree),
    ):
        with pytest.raises(TaskError, match="options"):
            values(control, {"options": options})


def test_options_that_no_json_can_hold_are_refused() -> None:
    tree: list[object] = []
    for _ in range(20_000):
        tree = [{"value": "a", "children": tree}]
    with pytest.raises(TaskError, match="nested too deeply"):
        values(by_task(), {"options": tree})


def test_a_project_knows_what_any_of_its_tasks_lists_up_to_a_bound() -> None:
    config = parse_labeling_config(
        view(
            '<Choices name="kind" toName="img" value="$options"/>', taxonomy().replace("kind", "t")
        )
    )
    tasks: list[dict[str, object]] = [
        {"options": [{"value": "a"}, {"value": "b"}]},
        {"options": "broken"},
        {},
        {"options": [{"value": "b"}, {"value": "c"}]},
        {"options": [{"value": f"{number}"} for number in range(10_000)]},
        {"options": [{"value": "one more"}]},
    ]

    known, other = with_options(config, tasks).controls

    assert known.values[:4] == ("a", "b", "c", "0")
    assert len(known.values) == 10_000
    assert other == config.controls[1]


def test_a_text_area_that_asks_for_it_shows_the_likeliest_choices() -> None:
    xml = '<TextArea name="top" toName="img" shortlistOf="kind"/>'
    assert the_control(xml, taxonomy()).shortlist == Shortlist("top", "img")


def test_a_shortlist_of_nothing_is_left_alone() -> None:
    config = parse_labeling_config(
        view(taxonomy(), '<TextArea name="top" toName="img" shortlistOf="gone"/>')
    )
    (reason,) = config.left_alone
    assert 'shortlistOf="gone"' in reason


def test_the_sentence_names_paths_and_fields() -> None:
    config = parse_labeling_config(
        view(taxonomy(), '<Choices name="own" toName="img" value="$options"/>')
    )
    assert config.sentence == (
        'Predicts <Taxonomy name="kind"> (one of 5 paths) for <Image name="img">; '
        "<Choices name=\"own\"> (one of the choices in each task's 'options') "
        'for <Image name="img">.'
    )
