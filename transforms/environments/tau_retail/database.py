"""What the shop knows, and what one conversation has changed of it.

    directory ──read──► Database (shared, never changed) ──► View of a conversation: a copy of each record it changes

A conversation touches a few of 1,500 records, so nothing else is copied, and what it has changed is all that has to be
compared in the end. Records are the JSON of tau-bench: what a tool says is their text, to the letter.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, NotRequired, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from schemas.errors import ConfigError
from schemas.records import first_fault

FILES: Final = ("users.json", "orders.json", "products.json")
"""What a directory of the data holds, below tau-bench's ``retail``."""

_record = with_config(ConfigDict(extra="forbid", strict=True))


@_record
class Address(TypedDict):
    """Where somebody lives, or parcels go."""

    address1: str
    address2: str
    city: str
    country: str
    state: str
    zip: str


@_record
class Name(TypedDict):
    """Of a user."""

    first_name: str
    last_name: str


@_record
class PaymentMethod(TypedDict):
    """What a user pays with: ``gift_card``, ``credit_card`` or ``paypal``."""

    source: str
    id: str
    balance: NotRequired[int | float]
    """Of a gift card, in dollars."""
    brand: NotRequired[str]
    last_four: NotRequired[str]


@_record
class User(TypedDict):
    """A customer."""

    name: Name
    address: Address
    email: str
    payment_methods: dict[str, PaymentMethod]
    """By their ids."""
    orders: list[str]
    """Ids."""


@_record
class Variant(TypedDict):
    """One item that can be bought: a product with its options."""

    item_id: str
    options: dict[str, str]
    available: bool
    price: int | float
    """In dollars."""


@_record
class Product(TypedDict):
    """A type of product."""

    name: str
    product_id: str
    variants: dict[str, Variant]
    """By the ids of the items."""


@_record
class Item(TypedDict):
    """An item of an order."""

    name: str
    product_id: str
    item_id: str
    price: int | float
    """That was paid, in dollars."""
    options: dict[str, str]


@_record
class Payment(TypedDict):
    """Money that went one way or the other."""

    transaction_type: str
    """``payment`` or ``refund``."""
    amount: int | float
    """In dollars."""
    payment_method_id: str


@_record
class Order(TypedDict):
    """An order. What is not required comes with a cancellation, a return or an exchange."""

    order_id: str
    user_id: str
    address: Address
    items: list[Item]
    fulfillments: list[dict[str, list[str]]]
    status: str
    payment_history: list[Payment]
    """The first one is what was paid."""
    cancel_reason: NotRequired[str]
    return_items: NotRequired[list[str]]
    return_payment_method_id: NotRequired[str]
    exchange_items: NotRequired[list[str]]
    exchange_new_items: NotRequired[list[str]]
    exchange_payment_method_id: NotRequired[str]
    exchange_price_difference: NotRequired[int | float]


class Database:
    """The shop before anybody has called. Shared by all conversations of a process, and never changed.

    Args:
        users: by their ids.
        orders: by their ids.
        products: by their ids.
    """

    def __init__(self, users: dict[str, User], orders: dict[str, Order], products: dict[str, Product]) -> None:
        self.users, self.orders, self.products = users, orders, products
        self._by_email: dict[str, str] = {}
        self._by_name: dict[tuple[str, str], list[str]] = {}
        for user_id, user in users.items():
            self._by_email.setdefault(user["email"].lower(), user_id)
            self._by_name.setdefault(_key(**user["name"]), []).append(user_id)

    @classmethod
    def read(cls, directory: Path) -> "Database":
        """The database of a directory.

        Raises:
            ConfigError: a file is missing, or does not hold what it should.
        """
        users, orders, products = (directory / name for name in FILES)
        return cls(_read(users, dict[str, User]), _read(orders, dict[str, Order]), _read(products, dict[str, Product]))

    def user_of_email(self, email: str) -> str | None:
        """The id of the first user with that address, None if there is none."""
        return self._by_email.get(email.lower())

    def users_of_name(self, first_name: str, last_name: str) -> list[str]:
        """The ids of all users of that name, in the order of the file."""
        return self._by_name.get(_key(first_name, last_name), [])


def _key(first_name: str, last_name: str) -> tuple[str, str]:
    return first_name.lower(), last_name.lower()


FileT = TypeVar("FileT")


def _read(file: Path, form: type[FileT]) -> FileT:
    """A file of records, as it is: validation would put keys into another order, and tools say them."""
    try:
        records = json.loads(file.read_bytes())
        TypeAdapter(form).validate_python(records)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; expected tau-bench's {', '.join(FILES)}") from error
    except ValidationError as error:
        raise ConfigError(f"{file}: {first_fault(error)}; expected tau-bench's {file.name}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not JSON ({error}); expected tau-bench's {file.name}") from error
    return cast("FileT", records)


RecordT = TypeVar("RecordT", User, Order)


class View:
    """The shop as one conversation has left it.

    What is read must not be changed: what is to be changed is asked for.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._users: dict[str, User] = {}
        self._orders: dict[str, Order] = {}

    def user(self, user_id: str) -> User | None:
        """To read; None if there is none."""
        return self._users.get(user_id) or self.database.users.get(user_id)

    def order(self, order_id: str) -> Order | None:
        """To read; None if there is none."""
        return self._orders.get(order_id) or self.database.orders.get(order_id)

    def user_to_change(self, user_id: str) -> User:
        """A user who exists, as this conversation's own."""
        return _own(self._users, self.database.users, user_id)

    def order_to_change(self, order_id: str) -> Order:
        """An order that exists, as this conversation's own."""
        return _own(self._orders, self.database.orders, order_id)

    def changes(self) -> dict[str, str]:
        """The records that differ from the database, by their ids, as JSON in one form for equal content.

        As in tau-bench 0 and 0.0 are two things, and the order of keys is none.
        """
        users, orders = self.database.users, self.database.orders
        return {**_differing(self._users, users), **_differing(self._orders, orders)}


def _own(own: dict[str, RecordT], shared: dict[str, RecordT], identity: str) -> RecordT:
    if identity not in own:
        own[identity] = deepcopy(shared[identity])
    return own[identity]


def _differing(own: dict[str, RecordT], shared: dict[str, RecordT]) -> dict[str, str]:
    texts = {identity: (_canonical(record), _canonical(shared[identity])) for identity, record in own.items()}
    return {identity: now for identity, (now, before) in texts.items() if now != before}


def _canonical(record: Any) -> str:
    return json.dumps(record, sort_keys=True)
