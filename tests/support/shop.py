"""A shop of our own making, in the files of tau-bench's retail data: two customers, two products, six orders."""

import json

_ADDRESS = {
    "address1": "1 Elm Street", "address2": "", "city": "Austin", "country": "USA", "state": "TX", "zip": "78701",
}  # fmt: skip
NEW_ADDRESS = {**_ADDRESS, "address1": "2 Oak Street", "zip": "78702"}
USERS = {
    "ada_byron_1": {
        "name": {"first_name": "Ada", "last_name": "Byron"},
        "address": _ADDRESS,
        "email": "ada@example.com",
        "payment_methods": {
            "gift_card_1": {"source": "gift_card", "balance": 50, "id": "gift_card_1"},
            "credit_card_1": {"source": "credit_card", "brand": "visa", "last_four": "1234", "id": "credit_card_1"},
            "paypal_1": {"source": "paypal", "id": "paypal_1"},
        },
        "orders": ["#W1", "#W2", "#W4", "#W5", "#W6"],
    },
    "bob_stone_2": {
        "name": {"first_name": "Bob", "last_name": "Stone"},
        "address": {**_ADDRESS, "zip": "10001"},
        "email": "bob@example.com",
        "payment_methods": {"credit_card_2": {"source": "credit_card", "id": "credit_card_2"}},
        "orders": ["#W3"],
    },
}


def _variant(item_id, color, price, *, available=True):
    return {"item_id": item_id, "options": {"color": color}, "available": available, "price": price}


PRODUCTS = {
    "100": {
        "name": "Mug",
        "product_id": "100",
        "variants": {
            "101": _variant("101", "blue", 10.1),
            "102": _variant("102", "red", 12.3),
            "103": _variant("103", "green", 9.0, available=False),
        },
    },
    "200": {
        "name": "Lamp",
        "product_id": "200",
        "variants": {"201": _variant("201", "white", 30.2), "202": _variant("202", "black", 95.0)},
    },
}


def _item(item_id):
    product = PRODUCTS[item_id[0] + "00"]
    variant = product["variants"][item_id]
    named = {"name": product["name"], "product_id": product["product_id"], "item_id": item_id}
    return {**named, "price": variant["price"], "options": variant["options"]}


def _order(order_id, status, items, paid_with, user_id="ada_byron_1"):
    items = [_item(item_id) for item_id in items]
    amount = round(sum(item["price"] for item in items), 2)
    paid = {"transaction_type": "payment", "amount": amount, "payment_method_id": paid_with}
    return {
        "order_id": order_id, "user_id": user_id, "address": _ADDRESS, "items": items, "fulfillments": [],
        "status": status, "payment_history": [paid],
    }  # fmt: skip


ORDERS = {
    order["order_id"]: order
    for order in (
        _order("#W1", "pending", ("101", "201"), "gift_card_1"),
        _order("#W2", "delivered", ("101", "101", "201"), "credit_card_1"),
        _order("#W3", "pending", ("201",), "credit_card_2", "bob_stone_2"),
        _order("#W4", "processed", ("101",), "paypal_1"),
        _order("#W5", "pending", ("202",), "paypal_1"),
        _order("#W6", "pending", ("101",), "paypal_1"),
    )
}
CANCEL = {"name": "cancel_pending_order", "kwargs": {"order_id": "#W1", "reason": "no longer needed"}}
EXCHANGE = {
    "name": "exchange_delivered_order_items",
    "kwargs": {
        "order_id": "#W2", "item_ids": ["101"], "new_item_ids": ["102"], "payment_method_id": "credit_card_1",
    },
}  # fmt: skip
TASKS = (
    {
        "annotator": "", "user_id": "ada_byron_1", "actions": [CANCEL], "outputs": [],
        "instruction": "Your name is Ada Byron and your zip code is 78701. Cancel order #W1, you need it no longer.",
    },
    {
        "annotator": "", "user_id": "ada_byron_1", "actions": [EXCHANGE], "outputs": ["2.2"],
        "instruction": "You are Ada Byron in 78701. Exchange one mug of #W2 for a red one. How much more is it?",
    },
)  # fmt: skip
POLICY = "# Policy\n\nHelp customers of the shop.\n"


def write_shop(directory):
    """All of it; the held-out tasks are those to train on, in reverse."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, records in (("users", USERS), ("orders", ORDERS), ("products", PRODUCTS)):
        (directory / f"{name}.json").write_text(json.dumps(records))
    for split, tasks in (("train", TASKS), ("test", TASKS[::-1])):
        (directory / f"tasks_{split}.json").write_text(json.dumps(tasks))
    (directory / "wiki.md").write_text(POLICY)
    return directory
