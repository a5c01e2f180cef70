from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import LabelingConfigError, TaskError
from backend.labelstudio.choices import Choice
from backend.labelstudio.config import Control, LabelingConfig, parse_labeling_config
from backend.labelstudio.task_data import image_source

CHOICES = '<Choice value="Tee"/><Choice value="Shoe"/>'


def view(*tags: str) -> str:
    return f'<View><Image name="img" value="$image"/>{"".join(tags)}</View>'


def choices(attributes: str = "", inside: str = CHOICES) -> str:
    return f'<Choices name="kind" toName="img" {attributes}>{inside}</Choices>'


def the_control(xml: str) -> Control:
    (control,) = parse_labeling_config(xml).controls
    return control


def the_reason(xml: str) -> str:
    config = parse_labeling_config(xml)
    assert config.controls == ()
    (reason,) = config.left_alone
    return reason


def test_choices_over_an_image_become_a_control() -> None:
    assert parse_labeling_config(view(choices())) == LabelingConfig(
        controls=(
            Control(
                name="kind",
                to_name="img",
                image="$image",
                choices=(Choice("Tee", ("Tee",)), Choice("Shoe", ("Shoe",))),
                multiple=False,
                conditional=False,
            ),
        ),
        left_alone=(),
    )


@pytest.mark.parametrize(
    ("attributes", "multiple"),
    [
        ('choice="single"', False),
        ('choice="single-radio" showInline="true"', False),
        ('choice="multiple" layout="select"', True),
    ],
)
def test_the_choice_attribute_tells_single_from_multiple(attributes: str, multiple: bool) -> None:
    assert the_control(view(choices(attributes))).multiple is multiple


def test_an_alias_is_what_annotations_store_and_every_name_serves_prompts() -> None:
    inside = (
        '<Choice value="Tee" alias="tee_01" predicted_values="t-shirt, tee shirt ,,Tee"/>'
        '<Choice value=" Shoe "/>'
    )
    control = the_control(view(choices(inside=inside)))
    assert control.values == ("tee_01", " Shoe ")
    assert [choice.names for choice in control.choices] == [
        ("Tee", "tee_01", "t-shirt", "tee shirt"),
        ("Shoe",),
    ]


def test_choices_with_the_same_stored_value_count_once() -> None:
    inside = '<Choice value="A"/><Choice value="B"/><Choice value="Other" alias="A"/>'
    assert the_control(view(choices(inside=inside))).values == ("A", "B")


def test_tag_names_match_in_any_case_and_choices_may_lie_in_views() -> None:
    xml = (
        '<view><image name="img" value="$image"/><choices name="kind" toName="img">'
        '<View><Header value="Tops"/><choice value="Tee"/></View><choice value="Shoe"/>'
        "</choices></view>"
    )
    assert the_control(xml).values == ("Tee", "Shoe")


def test_several_controls_each_keep_their_own_image() -> None:
    xml = view(
        '<Image name="back" value="$back"/>',
        choices(),
        f'<Choices name="other" toName="back">{CHOICES}</Choices>',
    )
    controls = parse_labeling_config(xml).controls
    assert [(each.name, each.to_name, each.image) for each in controls] == [
        ("kind", "img", "$image"),
        ("other", "back", "$back"),
    ]


def test_a_list_in_to_name_means_its_first_image() -> None:
    xml = view(
        '<Text name="note" value="$note"/>',
        f'<Choices name="kind" toName="note,img">{CHOICES}</Choices>',
    )
    assert the_control(xml).to_name == "img"


@pytest.mark.parametrize(
    "xml",
    [
        view(choices('visibleWhen="choice-selected" whenTagName="other"')),
        view(choices('whenChoiceValue="A"')),
        view(f'<View visibleWhen="region-selected"><View>{choices()}</View></View>'),
    ],
)
def test_a_control_that_may_be_hidden_is_conditional(xml: str) -> None:
    assert the_control(xml).conditional


def test_a_control_beside_a_hidden_one_is_not_conditional() -> None:
    xml = view(f'<View visibleWhen="region-selected">{CHOICES}</View>', choices())
    assert not the_control(xml).conditional


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        (choices(inside='<Choice value="A"><Choice value="B"/></Choice>'), "nested"),
        (choices('allowNested="true"'), "allowNested"),
        (choices('value="some text"', ""), "one field"),
        (choices(inside='<Choice value="$a"/><Choice value="B"/>'), "task data"),
        (choices('perRegion="true"'), "perRegion"),
        (choices('perItem="true"'), "perItem"),
        (choices('choice="some"'), 'choice="some" is not known'),
        (choices(inside='<Choice value="A"/>'), "too few"),
        (choices('choice="multiple"', '<Choice value=" "/>'), "too few"),
        (f'<Choices name="kind">{CHOICES}</Choices>', "no toName"),
        (f'<Choices toName="img">{CHOICES}</Choices>', "no name"),
        (f'<Choices name="kind" toName="gone">{CHOICES}</Choices>', "'gone'"),
        (
            f'<Text name="t" value="$t"/><Choices name="kind" toName="t">{CHOICES}</Choices>',
            "not an <Image>",
        ),
        (
            f'<Image name="l" valueList="$l"/><Choices name="kind" toName="l">{CHOICES}</Choices>',
            "valueList",
        ),
        (f'<Image name="e"/><Choices name="kind" toName="e">{CHOICES}</Choices>', "no value"),
        (f'<Repeater on="$pages">{choices()}</Repeater>', "Repeater"),
        (
            '<Repeater on="$p"><Image name="r" value="$p"/></Repeater>'
            f'<Choices name="kind" toName="r">{CHOICES}</Choices>',
            "Repeater",
        ),
        ('<RectangleLabels name="box" toName="img"><Label value="A"/></RectangleLabels>', "only"),
        ('<Rating name="stars" toName="img"/>', "only"),
    ],
)
def test_what_cannot_be_predicted_is_left_alone_with_its_reason(tag: str, reason: str) -> None:
    assert reason in the_reason(view(tag))


def test_one_control_left_alone_does_not_stop_the_others() -> None:
    xml = view(
        choices(),
        '<Choices name="deep" toName="img" perRegion="true"><Choice value="A"/></Choices>',
    )
    config = parse_labeling_config(xml)
    assert [control.name for control in config.controls] == ["kind"]
    assert len(config.left_alone) == 1
    assert '<Choices name="deep">' in config.left_alone[0]


def test_tags_with_the_same_name_are_ambiguous() -> None:
    config = parse_labeling_config(view(choices(), choices()))
    assert config.controls == ()
    assert all("more than one tag" in reason for reason in config.left_alone)


def test_a_multiple_control_may_have_one_choice() -> None:
    assert the_control(view(choices('choice="multiple"', '<Choice value="A"/>'))).values == ("A",)


@pytest.mark.parametrize("xml", ["", " \n", "<View></View>", "<View><Header value='x'/></View>"])
def test_a_config_without_choices_has_nothing_to_predict(xml: str) -> None:
    config = parse_labeling_config(xml)
    assert config == LabelingConfig((), ())
    assert config.sentence.startswith("Nothing is predicted: The labeling config has no <Choices>.")


def test_the_sentence_says_what_is_predicted() -> None:
    xml = view(choices(), f'<Choices name="c" toName="img" choice="multiple">{CHOICES}</Choices>')
    assert parse_labeling_config(xml).sentence == (
        'Predicts <Choices name="kind"> (one of 2 choices) for <Image name="img">; '
        '<Choices name="c"> (any of 2 choices) for <Image name="img">.'
    )


def test_the_sentence_says_why_nothing_is_predicted_and_what_to_do() -> None:
    sentence = parse_labeling_config(view(choices('perRegion="true"'))).sentence
    assert sentence.startswith("Nothing is predicted: ")
    assert "perRegion" in sentence
    assert "Add <Choices" in sentence


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<View>", "not valid XML"),
        ("no xml", "not valid XML"),
        ("\ud800", "not valid XML"),
        ('<!DOCTYPE v [<!ENTITY e "x">]><View>&e;</View>', "DTD"),
        ('<!DOCTYPE v SYSTEM "file:///etc/passwd"><View/>', "DTD"),
        ("<View>" * 201 + "</View>" * 201, "deeper than 200"),
        ("<View>" + " " * (1 << 20) + "</View>", "larger than"),
        ("<View>" * 100_000, "deeper than 200"),
    ],
    ids=["unclosed", "text", "surrogate", "entity", "external", "deep", "large", "deep-unclosed"],
)
def test_what_is_not_a_safe_xml_document_is_refused(xml: str, message: str) -> None:
    with pytest.raises(LabelingConfigError, match=message):
        parse_labeling_config(xml)


@given(
    st.text()
    | st.lists(
        st.sampled_from(
            [
                "<View>",
                "</View>",
                "<Choices name='a' toName='i'>",
                "<Choices>",
                "</Choices>",
                "<Choice value='x'/>",
                "<Choice>",
                "</Choice>",
                "<Image name='i' value='$i'/>",
                "<Rating toName=''/>",
                "<!-- c -->",
                "<?pi?>",
                "&amp;",
                "&x;",
            ]
        )
    ).map("".join)
)
def test_any_text_parses_or_is_refused_with_one_error(xml: str) -> None:
    try:
        config = parse_labeling_config(xml)
    except LabelingConfigError:
        return
    assert config.sentence
    for control in config.controls:
        assert len(set(control.values)) == len(control.choices)


def control_showing(template: str) -> Control:
    return Control("kind", "img", template, (Choice("A", ("A",)),), True, False)


@pytest.mark.parametrize(
    ("template", "source"),
    [
        ("$image", "/data/upload/1/a.png"),
        ("$nested.image", "n.png"),
        ("$pages[1]", "p1.png"),
        ("$pages[2].url", "p2.png"),
        ("$dotted.key", "exact"),
        ("https://host/$number/$nested.image", "https://host/7/n.png"),
        ("https://host/same.png", "https://host/same.png"),
    ],
)
def test_image_templates_resolve_as_in_label_studios_editor(template: str, source: str) -> None:
    data = {
        "image": "/data/upload/1/a.png",
        "nested": {"image": "n.png"},
        "pages": ["p0.png", "p1.png", {"url": "p2.png"}],
        "dotted.key": "exact",
        "number": 7,
    }
    assert image_source(control_showing(template), data) == source


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("$image", "task data has no field 'image'"),
        ("$list[5]", "no field"),
        (f"$list[{'9' * 5000}]", "no field"),
        ("$list.first", "no field"),
        ("$text.inner", "no field"),
        ("$my-image", "no field 'my'"),
        ("$list", r'value="\$list\[0\]"'),
        ("$none", "empty"),
        ("$blank", "empty"),
        ("$map", "not text"),
        ("$flag", "not text"),
    ],
)
def test_a_template_that_finds_no_picture_names_the_field(template: str, message: str) -> None:
    data = {"list": ["a"], "text": "x", "none": None, "blank": " ", "map": {}, "flag": True}
    with pytest.raises(TaskError, match=message):
        image_source(control_showing(template), data)


def test_a_picture_of_countless_fields_is_left_alone() -> None:
    config = parse_labeling_config(
        view(choices()).replace('value="$image"', f'value="{"$a " * 1000}"')
    )

    assert config.controls == ()
    assert "more than 20 fields" in config.left_alone[0]


def test_few_controls_may_take_their_choices_from_tasks() -> None:
    def config(count: int) -> str:
        tags = [f'<Choices name="c{i}" toName="img" value="$options"/>' for i in range(count)]
        return view(*tags)

    assert len(parse_labeling_config(config(10)).controls) == 10
    with pytest.raises(LabelingConfigError, match="more than 10 <Choices> whose choices come"):
        parse_labeling_config(config(11))
