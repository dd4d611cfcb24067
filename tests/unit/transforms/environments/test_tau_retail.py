"""The shop of tau-bench: its tools, how they are called, its users and its reward, on a shop of our own making."""

import json
from copy import deepcopy

import pytest

from schemas.config import EnvironmentsConfig
from schemas.errors import ConfigError, RecordError
from schemas.prompts import EnvironmentSpec
from tests.support.shop import CANCEL, EXCHANGE, NEW_ADDRESS, ORDERS, PRODUCTS, USERS, write_shop
from transforms.environments import registry
from transforms.environments.processes import EnvironmentProcesses
from transforms.environments.registry import Answer
from transforms.environments.tau_retail import tools
from transforms.environments.tau_retail.calls import BadCall, ToolCall, find_call
from transforms.environments.tau_retail.database import Database, View
from transforms.environments.tau_retail.environment import Case, TauRetail
from transforms.environments.tau_retail.user import CONFIRMS

ADA, CARD, GIFT, PAYPAL, BOBS_CARD = "ada_byron_1", "credit_card_1", "gift_card_1", "paypal_1", "credit_card_2"
NOT_NEEDED = {"reason": "no longer needed"}
registry.load()


@pytest.fixture
def view():
    """One whose database is checked to be as it was, in the end."""
    shared = deepcopy((USERS, ORDERS, PRODUCTS))
    yield View(Database(*shared))
    assert shared == (USERS, ORDERS, PRODUCTS), "a conversation changed what all share"


def use(view, name, **arguments):
    return tools.use(view, ToolCall(name=name, arguments=arguments))


def record(view, name, **arguments):
    """The record that a call which goes well answers with."""
    outcome = use(view, name, **arguments)
    assert not outcome.is_error, outcome.text
    return json.loads(outcome.text)


def replacing(order_id, items, new, paid_with):
    return {"order_id": order_id, "item_ids": items, "new_item_ids": new, "payment_method_id": paid_with}


def payment(kind, amount, paid_with):
    return {"transaction_type": kind, "amount": amount, "payment_method_id": paid_with}


def balance(view):
    return view.user(ADA)["payment_methods"][GIFT]["balance"]


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("find_user_id_by_email", {"email": "ADA@example.com"}, ADA),
        ("find_user_id_by_name_zip", {"first_name": "ada", "last_name": "BYRON", "zip": "78701"}, ADA),
        ("get_user_details", {"user_id": ADA}, json.dumps(USERS[ADA])),
        ("get_order_details", {"order_id": "#W2"}, json.dumps(ORDERS["#W2"])),
        ("get_product_details", {"product_id": "100"}, json.dumps(PRODUCTS["100"])),
        ("list_all_product_types", {}, '{"Lamp": "200", "Mug": "100"}'),
        ("calculate", {"expression": "(1.05 + 2) * 3"}, "9.15"),
        ("calculate", {"expression": "10 / 4 * 4"}, "10.0"),
        ("think", {"thought": "hm"}, ""),
        ("transfer_to_human_agents", {"summary": "sad"}, "Transfer successful"),
    ],
)
def test_a_lookup_says_what_the_database_holds_and_changes_nothing(view, name, arguments, text):
    assert use(view, name, **arguments) == tools.Outcome(text)
    assert view.changes() == {}


def test_a_cancelled_order_is_refunded_and_a_gift_card_has_its_money_at_once(view):
    order = record(view, "cancel_pending_order", order_id="#W1", reason="ordered by mistake")
    assert (order["status"], order["cancel_reason"]) == ("cancelled", "ordered by mistake")
    assert order["payment_history"] == [payment("payment", 40.3, GIFT), payment("refund", 40.3, GIFT)]
    assert balance(view) == 90.3
    assert set(view.changes()) == {"#W1", ADA}
    record(view, "cancel_pending_order", order_id="#W5", reason="no longer needed")
    assert balance(view) == 90.3


def test_items_of_a_pending_order_are_changed_once_and_the_difference_is_paid(view):
    order = record(view, "modify_pending_order_items", **replacing("#W1", ["101"], ["102"], GIFT))
    assert [(item["item_id"], item["price"], item["options"]) for item in order["items"]] == [
        ("102", 12.3, {"color": "red"}),
        ("201", 30.2, {"color": "white"}),
    ]
    assert order["payment_history"][1] == payment("payment", 12.3 - 10.1, GIFT), "tau-bench does not round it"
    assert order["status"] == "pending (item modified)"
    assert balance(view) == 47.8
    again = use(view, "modify_pending_order_items", **replacing("#W1", ["102"], ["101"], GIFT))
    assert again == tools.Outcome("Error: non-pending order cannot be modified", is_error=True)


def test_what_becomes_cheaper_is_a_refund(view):
    order = record(view, "modify_pending_order_items", **replacing("#W5", ["202"], ["201"], GIFT))
    assert order["payment_history"][1] == payment("refund", 95.0 - 30.2, GIFT)
    assert balance(view) == 114.8


def test_another_payment_method_pays_and_the_old_one_is_refunded(view):
    order = record(view, "modify_pending_order_payment", order_id="#W6", payment_method_id=GIFT)
    assert order["payment_history"][1:] == [payment("payment", 10.1, GIFT), payment("refund", 10.1, PAYPAL)]
    assert (order["status"], balance(view)) == ("pending", 39.9)
    record(view, "modify_pending_order_payment", order_id="#W1", payment_method_id=CARD)
    assert balance(view) == 80.2
    again = use(view, "modify_pending_order_payment", order_id="#W6", payment_method_id=CARD)
    assert again.text == "Error: there should be exactly one payment for a pending order"


def test_addresses_of_orders_and_users_are_changed(view):
    assert record(view, "modify_pending_order_address", order_id="#W1", **NEW_ADDRESS)["address"] == NEW_ADDRESS
    assert set(view.changes()) == {"#W1"}
    assert record(view, "modify_user_address", user_id=ADA, **NEW_ADDRESS)["address"] == NEW_ADDRESS
    by_name = {"first_name": "Ada", "last_name": "Byron"}
    assert use(view, "find_user_id_by_name_zip", **by_name, zip="78702").text == ADA
    assert use(view, "find_user_id_by_name_zip", **by_name, zip="78701").text == "Error: user not found"


def test_delivered_items_are_returned_to_what_they_were_paid_with_or_a_gift_card(view):
    returned = {"order_id": "#W2", "item_ids": ["201", "101", "101"]}
    order = record(view, "return_delivered_order_items", **returned, payment_method_id=GIFT)
    assert (order["status"], order["return_items"]) == ("return requested", ["101", "101", "201"])
    assert order["return_payment_method_id"] == GIFT
    assert balance(view) == 50


def test_delivered_items_are_exchanged(view):
    order = record(view, "exchange_delivered_order_items", **replacing("#W2", ["201", "101"], ["202", "102"], CARD))
    assert (order["status"], order["exchange_payment_method_id"]) == ("exchange requested", CARD)
    assert (order["exchange_items"], order["exchange_new_items"]) == (["101", "201"], ["102", "202"])
    assert order["exchange_price_difference"] == 67.0
    assert order["items"] == ORDERS["#W2"]["items"]


REFUSED = [
    ("find_user_id_by_email", {"email": "eve@example.com"}, "user not found"),
    ("get_user_details", {"user_id": "eve"}, "user not found"),
    ("get_order_details", {"order_id": "W1"}, "order not found"),
    ("get_product_details", {"product_id": "101"}, "product not found"),
    ("calculate", {"expression": "__import__('os')"}, "invalid characters in expression"),
    ("calculate", {"expression": "1/0"}, "division by zero"),
    ("calculate", {"expression": "9**9**9**9"}, "too large"),
    ("cancel_pending_order", {"order_id": "#W9", **NOT_NEEDED}, "order not found"),
    (
        "cancel_pending_order",
        {"order_id": "#W4", **NOT_NEEDED},
        "non-pending order cannot be cancelled",
    ),
    ("cancel_pending_order", {"order_id": "#W1", "reason": "too dear"}, "invalid reason"),
    ("modify_pending_order_address", {"order_id": "#W2", **NEW_ADDRESS}, "non-pending order cannot be modified"),
    ("modify_user_address", {"user_id": "eve", **NEW_ADDRESS}, "user not found"),
    (
        "modify_pending_order_payment",
        {"order_id": "#W1", "payment_method_id": BOBS_CARD},
        "payment method not found",
    ),
    (
        "modify_pending_order_payment",
        {"order_id": "#W1", "payment_method_id": GIFT},
        "the new payment method should be different from the current one",
    ),
    (
        "modify_pending_order_payment",
        {"order_id": "#W5", "payment_method_id": GIFT},
        "insufficient gift card balance to pay for the order",
    ),
    ("modify_pending_order_items", replacing("#W1", ["101", "101"], ["102", "102"], GIFT), "101 not found"),
    (
        "modify_pending_order_items",
        replacing("#W1", ["101"], [], GIFT),
        "the number of items to be exchanged should match",
    ),
    ("modify_pending_order_items", replacing("#W1", ["101"], ["103"], GIFT), "new item 103 not found or available"),
    ("modify_pending_order_items", replacing("#W1", ["101"], ["202"], GIFT), "new item 202 not found or available"),
    ("modify_pending_order_items", replacing("#W1", ["101"], ["102"], BOBS_CARD), "payment method not found"),
    (
        "modify_pending_order_items",
        replacing("#W1", ["201"], ["202"], GIFT),
        "insufficient gift card balance to pay for the new item",
    ),
    (
        "exchange_delivered_order_items",
        replacing("#W1", ["101"], ["102"], GIFT),
        "non-delivered order cannot be exchanged",
    ),
    (
        "exchange_delivered_order_items",
        replacing("#W2", ["201"], ["202"], GIFT),
        "insufficient gift card balance to pay for the price difference",
    ),
    (
        "return_delivered_order_items",
        {"order_id": "#W2", "item_ids": ["101"], "payment_method_id": PAYPAL},
        "payment method should be either the original payment method or a gift card",
    ),
    (
        "return_delivered_order_items",
        {"order_id": "#W2", "item_ids": ["101"] * 3, "payment_method_id": CARD},
        "some item not found",
    ),
    ("sell_everything", {}, "there is no tool 'sell_everything'"),
    ("__class__", {}, "there is no tool '__class__'"),
    ("think", {"thought": 5}, "think: thought: Input should be a valid string"),
    ("think", {}, "think: thought: Field required"),
    ("think", {"thought": "", "__proto__": {}}, "think: __proto__: Extra inputs are not permitted"),
    ("cancel_pending_order", {"order_id": ["#W1"], "reason": {}}, "order_id: Input should be a valid string"),
    ("modify_pending_order_items", replacing("#W1", "101", ["102"], GIFT), "item_ids: Input should be a valid list"),
]


@pytest.mark.parametrize(("name", "arguments", "why"), REFUSED)
def test_what_cannot_be_done_is_said_and_changes_nothing(view, name, arguments, why):
    outcome = use(view, name, **arguments)
    assert outcome.is_error
    assert outcome.text.startswith("Error: ")
    assert why in outcome.text
    assert view.changes() == {}


def test_a_record_that_is_changed_back_is_no_change(view):
    use(view, "modify_user_address", user_id=ADA, **NEW_ADDRESS)
    assert set(view.changes()) == {ADA}
    use(view, "modify_user_address", user_id=ADA, **USERS[ADA]["address"])
    assert view.changes() == {}


def test_every_tool_is_described_by_its_name_arguments_and_purpose():
    lines = tools.describe().splitlines()
    assert len(lines) == len(tools.TOOLS) == 16
    assert lines[8] == (
        "- cancel_pending_order(order_id, reason): Cancels a pending order and refunds it. "
        'The reason is "no longer needed" or "ordered by mistake".'
    )
    assert "- modify_user_address(user_id, address1, address2, city, state, country, zip): " in tools.describe()


THINK = '{"name": "think", "arguments": {"thought": "a {brace}"}}'


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>{THINK}</tool_call>",
        f"Let me see.\n<tool_call>\n{THINK}\n</tool_call>\nDone.",
        f"<tool_call>{THINK}",
        f'<tool_call>{THINK}</tool_call><tool_call>{{"name": "other"}}</tool_call>',
        THINK,
        f"\n```json\n{THINK}\n```",
        f"I will think: {THINK} and then go on.",
    ],
)
def test_a_call_is_found_with_tags_and_without(text):
    assert find_call(text) == ToolCall(name="think", arguments={"thought": "a {brace}"})


@pytest.mark.parametrize("text", ["", "Your order is cancelled.", "a {set} of [words]", '"name": "think"', "tool_call"])
def test_an_answer_without_a_call_has_none(text):
    assert find_call(text) is None


HOSTILE = [
    "<tool_call>",
    "<tool_call>cancel it</tool_call>",
    "<tool_call>[]</tool_call>",
    "<tool_call>" + "[" * 100_000,
    '{"name": "think", "arguments": ' + "[" * 100_000 + "]" * 100_000 + "}",
    '{"name": ' * 100_000,
    "{" * 1_000_000,
    '{"name": "think", "arguments": {"thought": "' + "x" * 1_000_000 + '"}}',
    '{"name": "think", "arguments": {"thought": ' + "9" * 10_000 + "}}",
    '{"name": "think", "arguments": {"thought": "\\ud800"}}',
    '{"name": "\\ud800", "arguments": {}}',
    '{"name": "think", "arguments": "thought"}',
    '{"name": 5, "arguments": {}}',
    '{"name": "", "arguments": {}}',
    '{"name": "think", "thought": "x"}',
    '{"__proto__": {"name": "think"}}',
    '{"name": "think", "arguments": {}, "__class__": "View"}',
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_call_in_another_form_is_said_to_be_one(text):
    with pytest.raises(BadCall, match=r"expected \{\"name\": "):
        find_call(text)


@pytest.fixture
def shop(tmp_path):
    write_shop(tmp_path)
    registry.load(EnvironmentsConfig(data={"tau_retail": tmp_path}))
    return tmp_path


def calling(action):
    return json.dumps({"name": action["name"], "arguments": action["kwargs"]})


def case(*actions, outputs=(), **more):
    """The arguments of a prompt."""
    named = [{"name": action["name"], "arguments": action["kwargs"]} for action in actions]
    return {"actions": named, "outputs": list(outputs), **more}


async def play(arguments, *texts):
    """The steps that answers get, all of them expected."""
    made = TauRetail()
    await made.reset(Case.model_validate(arguments))
    steps = [await made.step(Answer(turn=turn, text=text, token_ids=())) for turn, text in enumerate(texts, 1)]
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [steps[-1].done]
    return steps


def total(steps, part):
    return sum(step.parts[part] for step in steps)


async def test_the_right_actions_and_words_get_the_reward(shop):
    steps = await play(case(EXCHANGE, outputs=["2.2"]), calling(EXCHANGE), "It is 2.2 more. All right?", "Done.")
    assert [step.done for step in steps] == [False, False, True]
    assert [step.reward for step in steps] == [0.0, 0.0, 1.0]
    assert {name: total(steps, name) for name in steps[0].parts} == {
        "database": 1.0, "outputs": 1.0, "calls": 1.0, "errors": 0.0,
    }  # fmt: skip
    assert steps[1].messages[0].model_dump() == {"role": "user", "content": CONFIRMS}


OTHERS_ORDER = {"name": "cancel_pending_order", "kwargs": {"order_id": "#W3", **NOT_NEEDED}}


@pytest.mark.parametrize(
    ("arguments", "texts", "database", "outputs"),
    [
        (case(CANCEL), ("Done.", "Bye."), 0.0, 1.0),
        (case(CANCEL), (calling(CANCEL), calling(OTHERS_ORDER), "Done.", "Bye."), 0.0, 1.0),
        (case(CANCEL), (calling(EXCHANGE), "Done.", "Bye."), 0.0, 1.0),
        (case(EXCHANGE, outputs=["2.2", "red"]), (calling(EXCHANGE), "2.2 more", "Bye."), 1.0, 0.5),
        (case(outputs=["2.2"]), ('{"name": "think", "arguments": {"thought": "2.2"}}', "Done.", "Bye."), 1.0, 0.0),
        (case(outputs=["2.2"]), ('It is 2.2. {"name": "list_all_product_types"}', "Done.", "Bye."), 1.0, 0.0),
    ],
)
async def test_anything_less_gets_none(shop, arguments, texts, database, outputs):
    steps = await play(arguments, *texts)
    assert steps[-1].done
    assert sum(step.reward for step in steps) == 0.0
    assert (total(steps, "database"), total(steps, "outputs")) == (database, outputs)


async def test_case_and_commas_of_what_is_said_do_not_count(shop):
    steps = await play(case(outputs=["1093.34", "Mastercard"]), "You paid $1,093.34 with MASTERCARD.", "Bye.")
    assert steps[-1].reward == 1.0


async def test_the_order_of_actions_and_detours_do_not_count(shop):
    lookup = '{"name": "get_order_details", "arguments": {"order_id": "#W3"}}'
    steps = await play(case(CANCEL, EXCHANGE), lookup, calling(EXCHANGE), "{}", calling(CANCEL), "Done.", "Bye.")
    assert (steps[-1].reward, total(steps, "calls"), total(steps, "errors")) == (1.0, 4.0, 1.0)


async def test_a_transfer_ends_the_conversation_and_is_right_where_nothing_was_to_be_changed(shop):
    transfer = {"name": "transfer_to_human_agents", "kwargs": {"summary": "wants a person"}}
    for arguments, reward in ((case(transfer), 1.0), (case(CANCEL), 0.0)):
        (step,) = await play(arguments, calling(transfer))
        assert (step.done, step.reward, step.parts["calls"]) == (True, reward, 1.0)
    refused, _ = await play(case(), '{"name": "transfer_to_human_agents"}', "Bye.")
    assert not refused.done


async def test_a_told_user_confirms_each_time_the_agent_has_done_something(shop):
    steps = await play(case(CANCEL), "May I?", calling(CANCEL), "Done. More?", "Bye.")
    assert [step.messages[0].content for step in steps if step.messages][0::2] == [CONFIRMS, CONFIRMS]
    assert steps[-1].reward == 1.0


async def test_conversations_share_the_database_and_nothing_else(shop):
    first, second = TauRetail(), TauRetail()
    for made in (first, second):
        await made.reset(Case.model_validate(case(CANCEL)))
    for _ in range(2):
        step = await first.step(Answer(turn=1, text=calling(CANCEL), token_ids=()))
    assert "non-pending" in step.messages[0].content
    step = await second.step(Answer(turn=1, text=calling(CANCEL), token_ids=()))
    assert "Error" not in step.messages[0].content


async def test_what_tools_say_stands_in_tags_unless_the_template_has_a_role_for_it(shop):
    (user,), (tool,) = [await play(case(**role), "{}") for role in ({}, {"role": "tool"})]
    assert user.messages[0].role == "user"
    assert user.messages[0].content == f"<tool_response>\n{tool.messages[0].content}\n</tool_response>"
    assert tool.messages[0].role == "tool"
    assert tool.messages[0].content.startswith("Error: not a tool call: ")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_answers_are_answered_and_can_be_carried(shop, text):
    (step,) = await play(case(CANCEL), text)
    assert (step.done, step.reward, step.parts["errors"]) == (False, 0.0, 1.0)
    assert len(step.model_dump_json()) < 1000


@pytest.mark.parametrize(
    "arguments",
    [
        {"outputs": []},
        {"actions": [{"name": "sell", "arguments": {}}]},
        {"actions": [{"name": "think", "arguments": {"thought": 5}}]},
        {"actions": [], "data": "/etc"},
        {"actions": [], "user": "model"},
        {"actions": [], "instruction": "Cancel #W1."},
        {"actions": [], "user": "http://127.0.0.1:8000"},
    ],
)
def test_a_case_that_cannot_be_played_is_found_when_the_prompt_arrives(shop, arguments):
    with pytest.raises(RecordError) as caught:
        registry.check(EnvironmentSpec(name="tau_retail", args=arguments))
    assert caught.value.reason == "bad_environment_arguments"


def test_a_prompt_whose_environment_has_no_data_says_what_to_configure(monkeypatch):
    monkeypatch.setattr(registry, "_READ", {})
    with pytest.raises(RecordError, match=r"rollout\.environments\.data\.tau_retail") as caught:
        registry.check(EnvironmentSpec(name="tau_retail", args=case(CANCEL)))
    assert caught.value.reason == "environment_without_data"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("orders.json", None, r"data\.tau_retail = .*orders\.json: No such file.*users\.json, orders\.json"),
        ("users.json", "{", r"users\.json: not JSON"),
        ("users.json", "[" * 100_000, r"users\.json: not JSON"),
        ("users.json", '{"ada": {}}', r"users\.json: ada\.name: Field required"),
        (
            "products.json",
            '{"100": {"name": "Mug", "product_id": 100}}',
            r"products\.json: 100\.",
        ),
    ],
)
def test_data_that_is_missing_or_something_else_is_named_with_its_key(tmp_path, name, content, complaint):
    file = write_shop(tmp_path) / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ConfigError, match=complaint):
        registry.load(EnvironmentsConfig(data={"tau_retail": tmp_path}))


@pytest.mark.parametrize(
    ("name", "complaint"), [("calculator", "reads no data; leave it out"), ("tau_retai", "did you mean 'tau_retail'")]
)
def test_data_for_an_environment_that_reads_none_is_refused(tmp_path, name, complaint):
    with pytest.raises(ConfigError, match=complaint):
        registry.load(EnvironmentsConfig(data={name: tmp_path}))


async def test_it_runs_in_processes_that_have_read_the_configured_directory(tmp_path):
    config = EnvironmentsConfig(data={"tau_retail": write_shop(tmp_path)})
    environments = EnvironmentProcesses(config)
    try:
        async with environments.opened(EnvironmentSpec(name="tau_retail", args=case(CANCEL))) as instance:
            for text in (calling(CANCEL), *HOSTILE[:6], "Done.", "Bye."):
                step = await instance.step(Answer(turn=1, text=text, token_ids=()))
            assert (step.done, step.reward, step.parts["database"]) == (True, 1.0, 1.0)
    finally:
        await environments.close()
