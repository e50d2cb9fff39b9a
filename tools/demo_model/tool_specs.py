"""Tools that the model is taught to call: everyday ones written by hand, and endless made-up ones."""

import random
from dataclasses import dataclass

from tools.demo_model.text import capitalize, made_up_word, say, words
from tools.demo_model.tool_values import VALUES


@dataclass(frozen=True)
class Param:
    """One parameter: its possible names, what kind of value it takes, and a description."""

    names: tuple[str, ...]
    kind: str
    description: str


@dataclass(frozen=True)
class ToolSpec:
    """An everyday tool; ``asks`` and ``answer`` use {a}, {b}, {c} for the values."""

    names: tuple[str, ...]
    description: str
    params: tuple[Param, ...]
    asks: str
    results: tuple[tuple[str, str], ...]  # result key, kind of its value
    answer: str


def _param(names: str, kind: str, description: str) -> Param:
    return Param(tuple(names.split()), kind, description)


_FIRST = _param("a a x first left number1", "number", "[First number|The first number|A number]")
_SECOND = _param("b b y second right number2", "number", "[Second number|The second number|Another number]")
_CITY = _param(
    "city city location place town",
    "city",
    "[Name of the city|The city|City and country|Where|City and state, e.g. San Francisco, CA]",
)

SPECS = (
    ToolSpec(
        ("get_weather", "get_current_weather", "weather", "weather_forecast"),
        "[Get|Returns] the [current |]weather [in|for] a [city|given location|place]",
        (_CITY, _param("unit unit units scale", "unit", "[Unit of the temperature|The unit]")),
        "[What is|What's|How is|Tell me] the [weather|temperature] in {a} in {b}?|Weather in {a}, in {b}[, please|].|"
        "How [warm|cold] is it in {a}, in [degrees |]{b}?",
        (("temperature", "degrees"), ("condition", "condition")),
        "It is {temperature} degrees {b} and {condition} in {a}.",
    ),
    ToolSpec(
        ("multiply", "multiply_numbers", "mul", "product", "times"),
        "[Multiply|Multiplies] two [numbers|integers]",
        (_FIRST, _SECOND),
        "[What is|What's|Calculate|How much is] {a} [times|*|x|multiplied by] {b}?|Multiply {a} [and|by|with] {b}.|"
        "{a} * {b}|The product of {a} and {b}?",
        (("result", "number"),),
        "The result is {result}.",
    ),
    ToolSpec(
        ("divide", "divide_numbers", "div", "quotient"),
        "[Divide|Divides] [one number by another|two numbers]",
        (_FIRST, _SECOND),
        "[What is|What's|Calculate] {a} [divided by|/] {b}?|Divide {a} by {b}.|{a} / {b}",
        (("result", "number"),),
        "The result is {result}.",
    ),
    ToolSpec(
        ("add", "add_numbers", "sum", "plus", "add_two_numbers"),
        "[Add|Adds] two [numbers|integers]",
        (_FIRST, _SECOND),
        "[What is|What's|Calculate|How much is] {a} [plus|+] {b}?|Add {a} and {b}.|{a} + {b}|The sum of {a} and {b}?",
        (("result", "number"),),
        "The result is {result}.",
    ),
    ToolSpec(
        ("subtract", "subtract_numbers", "minus", "difference"),
        "[Subtract|Subtracts] [one number from another|two numbers]",
        (_FIRST, _SECOND),
        "[What is|What's|Calculate|How much is] {a} [minus|-] {b}?|Subtract {b} from {a}.|{a} - {b}",
        (("result", "number"),),
        "The result is {result}.",
    ),
    ToolSpec(
        ("send_email", "email", "write_email", "sendEmail", "mail"),
        "[Send|Sends] an email",
        (
            _param("to recipient address", "name", "Who gets it"),
            _param("subject title", "topic", "Subject of the email"),
            _param("body text message", "text", "What it says"),
        ),
        "[Send|Write] an email to {a} with the subject {b}: {c}.|[Email|Mail] {a} about {b}: {c}.|Email {a}, subject "
        "{b}, text: {c}",
        (("status", "status"),),
        "I have sent the email to {a}.",
    ),
    ToolSpec(
        ("get_order", "order_status", "get_order_status", "track_order", "lookup_order"),
        "[Get|Returns] the [status|state] of an order",
        (_param("order_id order_id id order number", "order", "[Number of the order|The order id]"),),
        "[Where is|What is the status of|Track|What about|Check] [my |]order {a}[?|.]|Has order {a} been sent?|Status "
        "of order {a}?",
        (("status", "status"), ("day", "date")),
        "Order {a}: {status}, {day}.",
    ),
    ToolSpec(
        ("search_products", "find_products", "product_search", "shop_search", "search_catalog"),
        "[Search|Searches] the [product catalog|shop|store]",
        (
            _param("query query product search text", "product", "What to look for"),
            _param("max_price max_price price_limit budget", "number", "Highest price"),
        ),
        "[Find|Find me|Search for|Show me|I want|I need|I am looking for] a {a} [under|below|for less than|for at "
        "most] {b}[| euros| dollars][.|]",
        (("count", "small"), ("cheapest", "number")),
        "I found {count} products for {a}. The cheapest costs {cheapest}.",
    ),
    ToolSpec(
        ("get_news", "news", "latest_news", "fetch_news", "headlines"),
        "[Get|Returns] the [latest |]news about a topic",
        (_param("topic topic subject query about", "topic", "The topic"),),
        "[What is|What's] new [about|in] {a}?|[Show me|Get|Find] [the latest |]news about {a}.|News about {a}[, "
        "please|].",
        (("headline", "summary"),),
        "The news about {a}: {headline}",
    ),
    ToolSpec(
        ("read_file", "open_file", "cat", "load_file", "get_file"),
        "[Read|Reads] a file",
        (_param("path path file filename name", "path", "[Path of the file|The file]"),),
        "[Read|Open|Show me|Print|What is in|What does] [the file |]{a}[.|]|What is in [the file |]{a}?",
        (("content", "summary"),),
        "The file {a} says: {content}",
    ),
    ToolSpec(
        ("set_volume", "volume", "change_volume", "audio_volume"),
        "[Set|Sets] the volume",
        (_param("percent level volume value", "percent", "Volume in percent"),),
        "[Set|Turn|Change] the volume to {a}[| percent][.|]|Volume {a}[, please|].|Make it {a} percent loud.",
        (("status", "status"),),
        "The volume is {a} percent.",
    ),
    ToolSpec(
        ("get_weather", "weather", "get_current_weather", "fetch_weather", "getWeather", "weather_lookup"),
        "[Get|Returns|Tells] the [current |]weather [in|of|for] a city",
        (_CITY,),
        "[What is|What's|How is|Tell me] the weather [like |]in {a}?|How's the weather in {a} [today|now]?|Weather in "
        "{a}?|Is it [raining|sunny|cold|warm] in {a}?|Do I need an umbrella in {a}?|What's the temperature in {a}?",
        (("temperature", "degrees"), ("condition", "condition")),
        "It is {temperature} degrees and {condition} in {a}.",
    ),
    ToolSpec(
        ("get_time", "current_time", "get_current_time", "time_in_city", "clock"),
        "[Get|Tells] the current time in a city",
        (_CITY,),
        "[What time is it|What is the time|What's the time] in {a}[| now| right now]?|Time in {a}?|Tell me the time "
        "in {a}.",
        (("time", "time"),),
        "It is {time} in {a}.",
    ),
    ToolSpec(
        ("calculate", "calculator", "eval_expression", "compute", "math"),
        "[Evaluate|Computes] a math expression",
        (_param("expression expression expr formula input", "sum", "The expression"),),
        "[What is|What's|Calculate|Compute|How much is] {a}?|{a}|[Please calculate|Work out] {a}.",
        (("result", "number"),),
        "{a} = {result}.",
    ),
    ToolSpec(
        ("search", "web_search", "search_web", "google", "lookup", "find_information"),
        "[Search|Searches] the web",
        (_param("query query q text search_term", "topic", "What to search for"),),
        "[Search for|Look up|Search the web for|Find something about|Find information about|Google] {a}.|[Can you|"
        "Please] search for {a}[?|.]|What can you find about {a}?",
        (("summary", "summary"),),
        "I found this about {a}: {summary}",
    ),
    ToolSpec(
        ("set_alarm", "create_alarm", "alarm", "setAlarm", "wake_me"),
        "[Set|Sets] an alarm",
        (_param("time time at alarm_time", "time", "Time of the alarm"),),
        "[Set an alarm|Set the alarm|Please set an alarm] for {a}.|Wake me [up |]at {a}.|I need an alarm at {a}.|"
        "Alarm at {a}, please.",
        (("status", "status"),),
        "The alarm is set for {a}.",
    ),
    ToolSpec(
        ("set_timer", "start_timer", "timer", "countdown"),
        "[Start|Starts] a timer",
        (_param("minutes minutes duration length", "small", "Length in minutes"),),
        "[Set|Start] a timer [for|of] {a} minutes.|Timer: {a} minutes.|Tell me when {a} minutes are over.",
        (("status", "status"),),
        "The timer runs for {a} minutes.",
    ),
    ToolSpec(
        ("send_message", "send_text", "text_someone", "sendMessage", "message"),
        "[Send|Sends] a message to a person",
        (
            _param("to recipient person contact", "name", "Who gets it"),
            _param("text message body content", "text", "What it says"),
        ),
        "[Send a message to {a}|Text {a}|Write to {a}|Message {a}]: {b}.|[Tell {a}|Let {a} know] that {b}.|Send {a} "
        "this message: {b}",
        (("status", "status"),),
        "I have sent the message to {a}.",
    ),
    ToolSpec(
        ("play_music", "play_song", "play", "start_music", "music_player"),
        "[Play|Plays] a song",
        (_param("song title track name", "song", "Title of the song"),),
        "[Play|Please play|Can you play|Put on|I want to hear] {a}[.||!]",
        (("status", "status"),),
        "{a} is playing now.",
    ),
    ToolSpec(
        ("translate", "translate_text", "translator"),
        "[Translate|Translates] text into another language",
        (
            _param("text text phrase input", "word", "What to translate"),
            _param("language target target_language to", "language", "Target language"),
        ),
        "[Translate|Please translate] {a} [to|into] {b}.|How do you say {a} in {b}?|What is {a} in {b}?",
        (("translation", "word"),),
        "In {b}, it is {translation}.",
    ),
    ToolSpec(
        ("convert_currency", "currency", "exchange", "convert_money"),
        "[Convert|Converts] money",
        (
            _param("amount amount value", "number", "How much"),
            _param("from from_currency source", "currency", "From which currency"),
            _param("to to_currency target", "currency", "To which currency"),
        ),
        "[Convert|Change|Exchange] {a} {b} [to|into] {c}.|How much [is|are] {a} {b} in {c}?|{a} {b} in {c}?",
        (("result", "number"),),
        "{a} {b} are {result} {c}.",
    ),
    ToolSpec(
        ("book_table", "reserve_table", "make_reservation", "restaurant_booking"),
        "[Book|Books] a table in a restaurant",
        (
            _param("people guests party_size persons", "people", "Number of guests"),
            _param("time at hour", "time", "When"),
        ),
        "[Book|Reserve|I need|I want] a table for {a}[| people] at {b}.|A table for {a}[| people] at {b}, please.",
        (("status", "status"),),
        "I have booked a table for {a} at {b}.",
    ),
    ToolSpec(
        ("create_event", "add_event", "add_to_calendar", "calendar_add", "schedule_event"),
        "[Add|Adds] an event to the calendar",
        (
            _param("title name event summary", "task", "Title of the event"),
            _param("date day when", "date", "Day of the event"),
        ),
        "[Add|Put] {a} [to|in] my calendar [on|for] {b}.|[Schedule|Create an event]: {a}, on {b}.|Plan {a} [on|for] "
        "{b}.",
        (("status", "status"),),
        "I have added it to your calendar: {a}, {b}.",
    ),
    ToolSpec(
        ("add_reminder", "remind_me", "set_reminder", "create_reminder"),
        "[Create|Creates] a reminder",
        (_param("text task what reminder", "task", "What to remember"), _param("time at when", "time", "When")),
        "Remind me to {a} at {b}.|[Set|Create] a reminder at {b}: {a}.|At {b}, remind me to {a}.",
        (("status", "status"),),
        "I will remind you at {b}: {a}.",
    ),
    ToolSpec(
        ("switch_light", "set_light", "light_control", "lights", "toggle_light"),
        "[Switch|Switches] the light in a room",
        (_param("room room place location", "room", "Which room"), _param("state state status", "state", "On or off")),
        "[Turn|Switch] {b} the [light|lights|lamp] in the {a}.|[Turn|Switch] the [light|lights] in the {a} {b}.|{a} "
        "light {b}[, please.|.|]",
        (("status", "status"),),
        "The light in the {a} is {b}.",
    ),
    ToolSpec(
        ("set_temperature", "set_heating", "thermostat", "heating"),
        "[Set|Sets] the heating",
        (
            _param("degrees temperature value", "degrees", "Temperature in degrees"),
            _param("room where location", "room", "Which room"),
        ),
        "[Set|Heat|Bring] the {b} to {a} degrees.|[Make it|I want] {a} degrees in the {b}.",
        (("status", "status"),),
        "The {b} is set to {a} degrees.",
    ),
    ToolSpec(
        ("get_stock_price", "stock_price", "stock", "share_price"),
        "[Get|Returns] the price of a share",
        (_param("company symbol name stock", "company", "Name of the company"),),
        "[What is|What's] the [stock price|share price|price of a share] of {a}?|How is the stock of {a} doing?|Stock "
        "price of {a}?",
        (("price", "number"),),
        "A share of {a} costs {price}.",
    ),
    ToolSpec(
        ("find_recipe", "get_recipe", "recipe_search", "recipes"),
        "[Find|Finds] a recipe",
        (_param("dish food name meal", "food", "Name of the dish"),),
        "[Find|Show me|Get me|I need] a recipe for {a}.|How do I [make|cook] {a}?|I want to cook {a}.",
        (("minutes", "small"), ("difficulty", "level")),
        "I found a recipe for {a}. It takes {minutes} minutes.",
    ),
    ToolSpec(
        ("add_to_list", "shopping_list_add", "add_item", "buy_list"),
        "[Add|Adds] an item to the shopping list",
        (_param("item thing product", "food", "What to buy"), _param("count amount quantity", "people", "How many")),
        "[Put|Add] {b} {a} [on|to] [my|the] shopping list.|I need to buy {b} {a}.",
        (("status", "status"),),
        "{b} {a} are on your list now.",
    ),
    ToolSpec(
        ("get_distance", "distance", "route_length", "how_far"),
        "[Get|Returns] the distance between two cities",
        (_param("from start origin", "city", "Start"), _param("to end destination", "city", "Destination")),
        "How far is it from {a} to {b}?|[What is|What's] the distance [from {a} to|between {a} and] {b}?",
        (("kilometres", "number"),),
        "It is {kilometres} kilometres from {a} to {b}.",
    ),
    ToolSpec(
        ("book_train", "buy_ticket", "train_ticket", "book_trip"),
        "[Book|Buys] a train ticket",
        (
            _param("from origin start", "city", "Start"),
            _param("to destination target", "city", "Destination"),
            _param("date day when", "date", "Day of travel"),
        ),
        "[Book|Buy|I need] a [train ticket|ticket] from {a} to {b} [on|for] {c}.|I want to go from {a} to {b} on {c}.",
        (("price", "number"),),
        "Your ticket from {a} to {b} is booked. It costs {price}.",
    ),
    ToolSpec(
        ("define_word", "dictionary", "get_definition", "define"),
        "[Look up|Looks up] a word in the dictionary",
        (_param("word term text", "word", "The word"),),
        "[Define|Look up] [the word |]{a}.|What does {a} mean?|[What is|What's] the meaning of {a}?",
        (("definition", "summary"),),
        "{a} means: {definition}",
    ),
    ToolSpec(
        ("roll_dice", "dice", "random_number"),
        "[Roll|Rolls] a dice",
        (_param("sides faces max", "number", "Number of sides"),),
        "Roll a dice with {a} sides.|[Give me|I need] a random number up to {a}.",
        (("value", "small"),),
        "The number is {value}.",
    ),
)
_VERBS = words(
    "paint clean move open close start stop check print copy delete create update upload download rename order find "
    "measure count mix build repair wash fold sort send read write lock unlock scan pack fill empty lift turn test "
    "reset load save share split merge watch plan draw record"
)
_NOUNS = words(
    "fence door window robot file folder photo video report table invoice box parcel printer camera engine pump "
    "filter garden pool roof wall shelf drawer truck drone sensor database user account ticket song playlist page "
    "letter package machine oven boiler fan screen battery server cluster job task note card badge"
)
_GENERIC = (
    ("colour color paint", "colour"),
    ("name title label owner user_name", "name"),
    ("city target_city place", "city"),
    ("count amount number copies repeat", "small"),
    ("speed power level_percent volume", "percent"),
    ("size", "size"),
    ("level mode strength priority", "level"),
    ("day date deadline", "date"),
    ("time start_time", "time"),
    ("word tag keyword code topic", "word"),
    ("room area zone", "room"),
    ("id width height length weight", "number"),
    ("language", "language"),
    ("item object part", "thing"),
    ("enabled force silent quiet verbose", "flag"),
)


def made_up_tool(rng: random.Random) -> tuple[str, str, list[tuple[str, str, object]], str]:
    """Name, description, (parameter, kind, value) triples and the request of a tool nobody has seen."""
    verb, noun = rng.choice(_VERBS), rng.choice(_NOUNS)
    if rng.random() < 0.15:
        noun = made_up_word(rng)
    name = rng.choice([f"{verb}_{noun}"] * 4 + [f"{verb}{capitalize(noun)}", f"{noun}_{verb}", f"{verb}_the_{noun}"])
    params = []
    for names, kind in rng.sample(_GENERIC, rng.choice([0, 1, 1, 2, 2, 3])):
        params.append(
            (rng.choice(names.split()) if rng.random() < 0.85 else made_up_word(rng), kind, VALUES[kind](rng))
        )
    joiner = rng.choice([" ", " ", " = ", ": "])
    shown = [
        f"{p.replace('_', ' ') if rng.random() < 0.6 else p}{joiner}{str(v).lower() if isinstance(v, bool) else v}"
        for p, _, v in params
    ]
    request = say(
        rng,
        "[{verb}|please {verb}|can you {verb}|I want you to {verb}|you should {verb}] the {noun}",
        verb=verb,
        noun=noun,
    )
    if shown:
        request += rng.choice([" with ", " with ", ", ", " using ", " and use "]) + " and ".join(shown)
    return name, f"{capitalize(verb)}s the {noun}", params, capitalize(request) + rng.choice([".", ".", "", "!"])
