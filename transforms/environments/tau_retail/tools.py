"""The shop's tools: what they are given, what they do to a view, and what they say.

    ToolCall ──parse──► tool and typed arguments ──use──► Outcome: text for the model

A tool finds all that is wrong before it changes anything. Their names, arguments, words and effects are tau-bench's,
for a policy, the tasks and other people's figures depend on them; the docstring of a tool is what the model reads.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.records import first_fault
from transforms.environments import calculator
from transforms.environments.tau_retail.calls import ToolCall
from transforms.environments.tau_retail.database import Address, Item, Order, PaymentMethod, User, Variant, View

_REASONS: Final = ("no longer needed", "ordered by mistake")
_EXPRESSION: Final = frozenset("0123456789+-*/(). ")
ENDING: Final = "transfer_to_human_agents"
"""The tool after which the conversation is over."""


class ToolError(ValueError):
    """What a tool does not do, in words for the model. Nothing has been changed."""


class Outcome(NamedTuple):
    """What a tool says."""

    text: str
    is_error: bool = False


class Given(BaseModel):
    """Base of the arguments of a tool: a number is not a string, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


GivenT = TypeVar("GivenT", bound=Given)


class Tool(NamedTuple):
    """A function and what it takes."""

    arguments: type[Given]
    use: Callable[[View, Any], str]
    description: str


TOOLS: Final[dict[str, Tool]] = {}
"""By their names, in the order in which a model reads them."""


def _tool(function: Callable[[View, GivenT], str]) -> Callable[[View, GivenT], str]:
    arguments = get_type_hints(function)["given"]
    TOOLS[function.__name__] = Tool(arguments, function, (function.__doc__ or "").strip())
    return function


def describe() -> str:
    """All tools with their arguments and what they do, a line each."""
    return "\n".join(
        f"- {name}({', '.join(tool.arguments.model_fields)}): {tool.description}" for name, tool in TOOLS.items()
    )


def use(view: View, call: ToolCall) -> Outcome:
    """Makes a call; what is wrong with it is said, and changes nothing."""
    try:
        tool, given = parse(call)
        return Outcome(tool.use(view, given))
    except ToolError as error:
        return Outcome(f"Error: {error}", is_error=True)


def parse(call: ToolCall) -> tuple[Tool, Given]:
    """The tool and its arguments.

    Raises:
        ToolError: there is no such tool, or it does not take that.
    """
    tool = TOOLS.get(call.name)
    if tool is None:
        raise ToolError(f"there is no tool {call.name[:80]!r}")
    try:
        return tool, tool.arguments.model_validate(call.arguments)
    except ValidationError as error:
        raise ToolError(f"{call.name}: {first_fault(error)}") from error


class Email(Given):
    """Of a user."""

    email: str


class NameZip(Given):
    """Of a user."""

    first_name: str
    last_name: str
    zip: str


class UserId(Given):
    """Which user."""

    user_id: str


class OrderId(Given):
    """Which order."""

    order_id: str


class ProductId(Given):
    """Which type of product."""

    product_id: str


class Nothing(Given):
    """No arguments."""


class Cancellation(OrderId):
    """Which order is cancelled, and why."""

    reason: str


class OrderPayment(OrderId):
    """What an order is paid with."""

    payment_method_id: str


class Return(OrderId):
    """What goes back, and where the money goes."""

    item_ids: list[str]
    payment_method_id: str


class Replacement(OrderId):
    """Items and what comes in their place, one by one, and what the difference is paid with."""

    item_ids: list[str]
    new_item_ids: list[str]
    payment_method_id: str


class Place(Given):
    """An address."""

    address1: str
    address2: str
    city: str
    state: str
    country: str
    zip: str

    def address(self) -> Address:
        """As the database has it."""
        return {
            "address1": self.address1, "address2": self.address2, "city": self.city,
            "state": self.state, "country": self.country, "zip": self.zip,
        }  # fmt: skip


class OrderAddress(Place, OrderId):
    """Where an order goes."""


class UserAddress(Place, UserId):
    """Where a user lives."""


class Expression(Given):
    """Of arithmetic."""

    expression: str


class Thought(Given):
    """Anything."""

    thought: str


class Summary(Given):
    """Of what the user wants."""

    summary: str


@_tool
def find_user_id_by_email(view: View, given: Email) -> str:
    """The id of the user with this email."""
    return _found(view.database.user_of_email(given.email), "user")


@_tool
def find_user_id_by_name_zip(view: View, given: NameZip) -> str:
    """The id of the user with this name and zip code, for users who do not know their email."""
    named = view.database.users_of_name(given.first_name, given.last_name)
    return _found(next((each for each in named if _user(view, each)["address"]["zip"] == given.zip), None), "user")


@_tool
def get_user_details(view: View, given: UserId) -> str:
    """A user's address, email, payment methods and order ids."""
    return json.dumps(_user(view, given.user_id))


@_tool
def get_order_details(view: View, given: OrderId) -> str:
    """An order's status, items, address and payments. Order ids begin with #, such as "#W0000000"."""
    return json.dumps(_order(view, given.order_id))


@_tool
def get_product_details(view: View, given: ProductId) -> str:
    """All items of a type of product, with options, price and availability. A product id is not an item id."""
    return json.dumps(_found(view.database.products.get(given.product_id), "product"))


@_tool
def list_all_product_types(view: View, given: Nothing) -> str:  # noqa: ARG001 - it takes none
    """The names and ids of all types of product."""
    products = view.database.products.values()
    return json.dumps(dict(sorted((product["name"], product["product_id"]) for product in products)))


@_tool
def calculate(view: View, given: Expression) -> str:  # noqa: ARG001 - it looks nothing up
    """The value of an expression of numbers, + - * / and brackets."""
    if not _EXPRESSION.issuperset(given.expression):
        raise ToolError("invalid characters in expression")
    value = calculator.calculate(given.expression)
    if value.startswith("error: "):
        raise ToolError(value.removeprefix("error: "))
    return str(round(float(value), 2))


@_tool
def think(view: View, given: Thought) -> str:  # noqa: ARG001 - it does nothing
    """Writes a thought down; nothing else happens."""
    return ""


@_tool
def cancel_pending_order(view: View, given: Cancellation) -> str:
    """Cancels a pending order and refunds it. The reason is "no longer needed" or "ordered by mistake"."""
    order = _order_of(view, given.order_id, "pending", "cancelled")
    if given.reason not in _REASONS:
        raise ToolError("invalid reason")
    payments = order["payment_history"]
    cards = [payment for payment in payments if _is_gift_card(payment["payment_method_id"])]
    for payment in cards:
        _payment_method(view, order, payment["payment_method_id"])
    order = view.order_to_change(given.order_id)
    for payment in cards:
        _add_to_balance(view, order, payment["payment_method_id"], payment["amount"])
    refunds = [_payment("refund", payment["amount"], payment["payment_method_id"]) for payment in payments]
    order["status"], order["cancel_reason"] = "cancelled", given.reason
    order["payment_history"].extend(refunds)
    return json.dumps(order)


@_tool
def modify_pending_order_address(view: View, given: OrderAddress) -> str:
    """Changes where a pending order is sent."""
    _order_of(view, given.order_id, "pending", "modified")
    order = view.order_to_change(given.order_id)
    order["address"] = given.address()
    return json.dumps(order)


@_tool
def modify_pending_order_payment(view: View, given: OrderPayment) -> str:
    """Changes what a pending order is paid with."""
    paid = _only_payment(view, _order_of(view, given.order_id, "pending", "modified"), given.payment_method_id)
    order = view.order_to_change(given.order_id)
    old, amount = paid["payment_method_id"], paid["amount"]
    order["payment_history"].append(_payment("payment", amount, given.payment_method_id))
    order["payment_history"].append(_payment("refund", amount, old))
    _add_to_balance(view, order, given.payment_method_id, -amount)
    _add_to_balance(view, order, old, amount)
    return json.dumps(order)


@_tool
def modify_pending_order_items(view: View, given: Replacement) -> str:
    """Changes items of a pending order to others of the same product, all in one call, which can be made once."""
    order = _order_of(view, given.order_id, "pending", "modified")
    dearer = _difference(view, order, given)
    _require_balance(_payment_method(view, order, given.payment_method_id), dearer, "pay for the new item")
    order = view.order_to_change(given.order_id)
    kind = "payment" if dearer > 0 else "refund"
    order["payment_history"].append(_payment(kind, abs(dearer), given.payment_method_id))
    _add_to_balance(view, order, given.payment_method_id, -dearer)
    for item_id, new_item_id in zip(given.item_ids, given.new_item_ids, strict=True):
        _replace(view, _first_item(order, item_id), new_item_id)
    order["status"] = "pending (item modified)"
    return json.dumps(order)


@_tool
def modify_user_address(view: View, given: UserAddress) -> str:
    """Changes a user's default address."""
    _user(view, given.user_id)
    user = view.user_to_change(given.user_id)
    user["address"] = given.address()
    return json.dumps(user)


@_tool
def return_delivered_order_items(view: View, given: Return) -> str:
    """Returns items of a delivered order, all in one call; refunds to what it was paid with, or to a gift card."""
    order = _order_of(view, given.order_id, "delivered", "returned")
    _payment_method(view, order, given.payment_method_id)
    paid_with = order["payment_history"][0]["payment_method_id"]
    if given.payment_method_id != paid_with and not _is_gift_card(given.payment_method_id):
        raise ToolError("payment method should be either the original payment method or a gift card")
    if _not_in(order, given.item_ids):
        raise ToolError("some item not found")
    order = view.order_to_change(given.order_id)
    order["status"] = "return requested"
    order["return_items"] = sorted(given.item_ids)
    order["return_payment_method_id"] = given.payment_method_id
    return json.dumps(order)


@_tool
def exchange_delivered_order_items(view: View, given: Replacement) -> str:
    """Exchanges items of a delivered order for others of the same product, all in one call, which can be made once."""
    order = _order_of(view, given.order_id, "delivered", "exchanged")
    dearer = round(_difference(view, order, given), 2)
    _require_balance(_payment_method(view, order, given.payment_method_id), dearer, "pay for the price difference")
    order = view.order_to_change(given.order_id)
    order["status"] = "exchange requested"
    order["exchange_items"] = sorted(given.item_ids)
    order["exchange_new_items"] = sorted(given.new_item_ids)
    order["exchange_payment_method_id"] = given.payment_method_id
    order["exchange_price_difference"] = dearer
    return json.dumps(order)


@_tool
def transfer_to_human_agents(view: View, given: Summary) -> str:  # noqa: ARG001 - nothing follows
    """Hands the user over to a person, only if no tool can do what is wanted. It ends the conversation."""
    return "Transfer successful"


FoundT = TypeVar("FoundT")


def _found(thing: FoundT | None, kind: str) -> FoundT:
    if thing is None:
        raise ToolError(f"{kind} not found")
    return thing


def _user(view: View, user_id: str) -> User:
    return _found(view.user(user_id), "user")


def _order(view: View, order_id: str) -> Order:
    return _found(view.order(order_id), "order")


def _order_of(view: View, order_id: str, status: str, done: str) -> Order:
    """An order in that status, which is what can be ``done`` to."""
    order = _order(view, order_id)
    if order["status"] != status:
        raise ToolError(f"non-{status} order cannot be {done}")
    return order


def _payment_method(view: View, order: Order, identity: str) -> PaymentMethod:
    """One of the user whose order it is."""
    return _found(_user(view, order["user_id"])["payment_methods"].get(identity), "payment method")


def _payment(kind: str, amount: float, identity: str) -> Any:
    return {"transaction_type": kind, "amount": amount, "payment_method_id": identity}


def _only_payment(view: View, order: Order, new: str) -> Any:
    """What was paid for an order that ``new`` is to pay instead."""
    method, history = _payment_method(view, order, new), order["payment_history"]
    if len(history) != 1 or history[0]["transaction_type"] != "payment":
        raise ToolError("there should be exactly one payment for a pending order")
    if history[0]["payment_method_id"] == new:
        raise ToolError("the new payment method should be different from the current one")
    _require_balance(method, history[0]["amount"], "pay for the order")
    if _is_gift_card(old := history[0]["payment_method_id"]):
        _payment_method(view, order, old)
    return history[0]


def _is_gift_card(identity: str) -> bool:
    return "gift_card" in identity


def _require_balance(method: PaymentMethod, amount: float, purpose: str) -> None:
    if "balance" in method and method["balance"] < amount:
        raise ToolError(f"insufficient gift card balance to {purpose}")


def _add_to_balance(view: View, order: Order, identity: str, amount: float) -> None:
    """Moves money onto a gift card; what is no gift card is settled elsewhere."""
    if _is_gift_card(identity):
        method = view.user_to_change(order["user_id"])["payment_methods"][identity]
        method["balance"] = round(method["balance"] + amount, 2)


def _not_in(order: Order, item_ids: Sequence[str]) -> str | None:
    """The first item that the order does not have, or not as often; None if it has them all."""
    there = [item["item_id"] for item in order["items"]]
    return next((each for each in item_ids if item_ids.count(each) > there.count(each)), None)


def _first_item(order: Order, item_id: str) -> Item:
    return next(item for item in order["items"] if item["item_id"] == item_id)


def _difference(view: View, order: Order, given: Replacement) -> float:
    """What the new items cost more than the old ones, in dollars, not rounded."""
    if missing := _not_in(order, given.item_ids):
        raise ToolError(f"{missing} not found")
    if len(given.item_ids) != len(given.new_item_ids):
        raise ToolError("the number of items to be exchanged should match")
    difference: float = 0
    for item_id, new_item_id in zip(given.item_ids, given.new_item_ids, strict=True):
        item = _first_item(order, item_id)
        difference += _available(view, item, new_item_id)["price"] - item["price"]
    return difference


def _available(view: View, item: Item, new_item_id: str) -> Variant:
    product = _found(view.database.products.get(item["product_id"]), "product")
    variant = product["variants"].get(new_item_id)
    if variant is None or not variant["available"]:
        raise ToolError(f"new item {new_item_id[:80]} not found or available")
    return variant


def _replace(view: View, item: Item, new_item_id: str) -> None:
    variant = view.database.products[item["product_id"]]["variants"][new_item_id]
    item["item_id"], item["price"], item["options"] = new_item_id, variant["price"], variant["options"]
