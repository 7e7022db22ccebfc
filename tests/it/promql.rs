//! The PromQL reader against a real Prometheus: both refuse the same expressions, and the normal
//! form of an expression means the same to Prometheus as the expression itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use futures_util::{StreamExt, stream};
use heliostat::promql::{canonical, read};

use crate::deploy::dashboard_expressions;
use crate::prometheus_api::{Dice, KEPT, LENGTH, PASSED, Rig, START};
use crate::prometheus_law::unordered;

/// Number of expressions of each kind in the corpus.
const GENERATED: usize = 1500;
const MUTATED: usize = 2500;

/// Number of expressions whose values are compared.
const VALUED: usize = 300;

/// Errors of Prometheus 2.42 about expressions that newer servers and Heliostat accept: its
/// message, and texts of which the expression contains at least one.
const NEWER: &[(&str, &[&str])] = &[
    (
        "unknown function",
        &[
            "histogram_avg(",
            "mad_over_time(",
            "limitk(",
            "sort_by_label(",
        ],
    ),
    // Underscores in numbers.
    ("bad number or duration syntax", &["_"]),
    ("missing unit character in duration", &["["]),
    // Durations as numbers and numbers as durations.
    ("unexpected duration", &[""]),
    ("unexpected number", &["offset", "["]),
    ("duration must be greater than 0", &["offset"]),
    ("bad duration syntax", &["_"]),
    // Names in quotes.
    ("in label matching, expected identifier", &["\"", "'", "`"]),
    (
        "unexpected string",
        &["by", "without", "on", "ignoring", "group_"],
    ),
    // Such names without quotes.
    (
        "unexpected metric identifier",
        &["by", "without", "on", "ignoring", "group_"],
    ),
    // Duration expressions.
    ("in offset, expected duration", &["offset"]),
    ("unexpected <op:", &["["]),
    // Functions of the window.
    ("unexpected \"(\"", &["start", "end"]),
    // Names of groups, which newer versions of Go accept.
    ("invalid or unsupported Perl syntax", &["(?<"]),
    // Parts of regular expressions that are not checked.
    ("error parsing regexp", &["[:", "\\p", "\\x", "\\Q", "(?"]),
];

/// Expressions of dashboards, to be mutated.
const SHAPES: &[&str] = &[
    "sum by (host) (rate(c_total{code=~\"5..\"}[5m])) / sum by (host) (rate(c_total[5m]))",
    "histogram_quantile(0.99, sum by (le, host) (rate(h_bucket{host!=\"\"}[1m30s] offset 1h)))",
    "100 * (1 - avg without (cpu) (irate(c_total{mode='idle'}[2m])))",
    "topk(5, max_over_time(g[1h:1m] @ end())) > bool 2 or absent(up{a=~`b|c`})",
    "label_replace(g, \"to\", \"$1\", \"host\", \"(.*)-\\\\d+\") * on (to) group_left () build",
    "predict_linear(g[6h], 4 * 3600) < 0 and on (host) (g offset -5m unless st)",
    "-2 ^ 3 ^ -g atan2 time() % 1e3",
    "{__name__=~\"g|st\",host=\"a\"}",
    "clamp_max(increase(c_total[1d]), 0x1F) == +Inf # end",
    "count_values(\"v\", (st != bool 3)) by (host,)",
];

/// An expression in two spellings: its normal form, and another one.
struct Made {
    normal: String,
    other: String,
}

impl Made {
    fn same(text: impl Into<String>) -> Self {
        let normal = text.into();
        let other = normal.clone();
        Self { normal, other }
    }
}

/// Generates expressions that Prometheus 2.42 accepts, with the metrics of [`Rig`].
struct Maker {
    dice: Dice,
    /// Whether most of them select something.
    tame: bool,
}

/// The kind of a generated expression, as far as parentheses around it are concerned.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// It never needs any.
    Whole,
    Number,
    /// A selector with `offset` or `@`. It needs parentheses only before a range, and existing ones
    /// are kept.
    Shifted,
    Signed,
    /// An operator of this precedence.
    Binary(u8),
}

impl Form {
    fn precedence(self) -> u8 {
        match self {
            Self::Binary(precedence) => precedence,
            Self::Signed => 5,
            _ => 7,
        }
    }
}

impl Maker {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.dice.roll(of.len() as i64) as usize]
    }

    fn chance(&mut self, n: i64) -> bool {
        self.dice.roll(n) == 0
    }

    /// Optional white space.
    fn gap(&mut self) -> &'static str {
        self.one(&["", "", "", " ", "  ", "\n", "\t ", " # x ) \"\n", "\r\n"])
    }

    /// Required white space.
    fn space(&mut self) -> &'static str {
        self.one(&[" ", "  ", "\n", " \t", " # by (\n"])
    }

    /// Returns a keyword in any case.
    fn keyword(&mut self, word: &str) -> String {
        match self.dice.roll(4) {
            0 => word.to_uppercase(),
            1 => word[..1].to_uppercase() + &word[1..],
            _ => word.to_owned(),
        }
    }

    /// Returns a string: quoted as in the normal form, and in another way.
    fn string(&mut self, value: &str) -> Made {
        let normal = format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
        let other = match self.dice.roll(3) {
            0 => normal.clone(),
            1 if !value.contains('`') => format!("`{value}`"),
            _ => format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")),
        };
        Made { normal, other }
    }

    fn duration(&mut self) -> Made {
        let (normal, others): (_, &[&str]) = self.one(&[
            ("1m", &["60s", "60000ms", "0h1m"][..]),
            ("90s", &["1m30s", "90000ms"][..]),
            ("5m", &["300s", "4m60s"][..]),
            ("1h", &["60m", "3600s"][..]),
            ("1500ms", &["1s500ms"][..]),
            ("15m", &["900s"][..]),
            ("1d", &["24h", "0w1d"][..]),
            ("37s", &["37000ms"][..]),
        ]);
        Made {
            normal: normal.to_owned(),
            other: self.one(others).to_owned(),
        }
    }

    fn number(&mut self) -> Made {
        let (normal, others): (_, &[&str]) = self.one(&[
            ("0", &["0", "0.0", "0x0", ".0"][..]),
            ("1", &["1.", "1e0", "0x1", "1.0"][..]),
            ("2", &["2", "2.00", "0X2", "20e-1"][..]),
            ("0.5", &[".5", "5e-1", "0.50"][..]),
            ("20", &["2e1", "2E+1", "0x14"][..]),
            ("1000", &["1e3", "1000.0"][..]),
            ("100000", &["1e5"][..]),
            ("1e-7", &["0.0000001", "1E-7"][..]),
            ("1e21", &["1000000000000000000000"][..]),
            ("0.9", &[".9"][..]),
            ("Inf", &["inf", "INF"][..]),
            ("NaN", &["nan", "NAN"][..]),
            ("9", &["9.0", "9.", "0x9"][..]),
        ]);
        Made {
            normal: normal.to_owned(),
            other: self.one(others).to_owned(),
        }
    }

    /// Returns names in parentheses, sorted and shuffled.
    fn labels(&mut self, of: &[&str]) -> Made {
        let names: BTreeSet<&str> = (0..self.dice.roll(3)).map(|_| self.one(of)).collect();
        let normal = format!("({})", names.iter().copied().collect::<Vec<_>>().join(", "));
        let mut other = String::from("(");
        let mut names: Vec<_> = names.into_iter().collect();
        if self.chance(2) {
            names.reverse();
        }
        for (n, name) in names.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            let _ = write!(other, "{}{comma}{}{name}", self.gap(), self.gap());
        }
        if !names.is_empty() && self.chance(4) {
            other.push(',');
        }
        other.push(')');
        Made { normal, other }
    }

    fn selector(&mut self) -> Made {
        let name = match self.tame {
            true => self.one(&["g", "c_total", "h_bucket", "st", "build"]),
            false => self.one(&[
                "g", "g", "c_total", "c_total", "h_bucket", "st", "odd", "wild", "none", "build",
                "nh", "by", "sum", "start", "and", "a:b",
            ]),
        };
        let mut matchers = BTreeMap::new();
        for _ in 0..self.dice.roll(if self.tame { 2 } else { 4 }) {
            let label = self.one(&["host", "code", "le", "version", "on", "a1"]);
            let operator = self.one(&["=", "!=", "=~", "!~"]);
            let value = match operator {
                "=" | "!=" => self.one(&["a", "b", "200", "", "x\"y", "it's", "a\\b", "é☀", "`"]),
                _ => self.one(&[
                    "a", "a|b", ".*", "", "[ab]+", "(?i)A", "5\\d\\d", "(a|b)?", "a{1,3}", "\\.",
                    "[^a]", "\\pL|0", "a.*", "x{", "^a$", "[]a]",
                ]),
            };
            let (label, operator, value) = match self.tame {
                true => self.one(&[
                    ("host", "=~", "a|b"),
                    ("host", "!=", "c"),
                    ("none", "=~", ".*"),
                ]),
                false => (label, operator, value),
            };
            let value = self.string(value);
            matchers.insert(label, (operator, value));
        }
        // As the bare name, or as a matcher, where nothing removes names.
        let mut normal = String::from(name);
        let mut other = normal.clone();
        let mut written: Vec<_> = matchers.iter().collect();
        if self.chance(2) {
            written.reverse();
        }
        if matchers.is_empty() {
            other += self.one(&["", "", "{}", " { }"]);
            return Made { normal, other };
        }
        let each = |(label, (operator, value)): (&&str, &(&str, Made))| {
            format!("{label}{operator}{}", value.normal)
        };
        let normals: Vec<_> = matchers.iter().map(each).collect();
        let _ = write!(normal, "{{{}}}", normals.join(","));
        let _ = write!(other, "{}{{", self.gap());
        for (n, (label, (operator, value))) in written.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            let (a, b, c) = (self.gap(), self.gap(), self.gap());
            let _ = write!(other, "{comma}{a}{label}{b}{operator}{c}{}", value.other);
        }
        let end = self.one(&["", ",", " ", " , "]);
        let _ = write!(other, "{end}}}");
        Made { normal, other }
    }

    /// Adds `offset` and `@` to a selector.
    fn shifted(&mut self, of: Made) -> (Made, bool) {
        let Made {
            mut normal,
            mut other,
        } = of;
        let at = self.chance(if self.tame { 20 } else { 8 }).then(|| {
            self.one(&[
                ("1700003600", "1.7000036e9"),
                ("1700003600.5", "1700003600.500"),
                ("start()", "START( )"),
                ("end()", "end()"),
                ("-5", "- 5"),
            ])
        });
        let offset = self.chance(5).then(|| {
            let sign = if self.chance(3) { "-" } else { "" };
            let length = self.duration();
            let spaced = format!("{sign}{}{}", self.gap(), length.other);
            (format!("{sign}{}", length.normal), spaced)
        });
        let none = at.is_none() && offset.is_none();
        let at = at.map(|(plain, spelled)| {
            let gaps = (self.gap(), self.gap());
            (
                format!(" @ {plain}"),
                format!("{}@{}{spelled}", gaps.0, gaps.1),
            )
        });
        let offset = offset.map(|(plain, spelled)| {
            let word = self.keyword("offset");
            let spaces = (self.space(), self.space());
            (
                format!(" offset {plain}"),
                format!("{}{word}{}{spelled}", spaces.0, spaces.1),
            )
        });
        let mut parts: Vec<_> = [at, offset].into_iter().flatten().collect();
        for (plain, _) in &parts {
            normal += plain;
        }
        if self.chance(2) {
            parts.reverse();
        }
        for (_, spelled) in &parts {
            other += spelled;
        }
        (Made { normal, other }, none)
    }

    /// Returns a range vector.
    fn matrix(&mut self, depth: u8) -> Made {
        let range = self.duration();
        if depth == 0 || self.chance(3) {
            let of = self.selector();
            let ranged = Made {
                normal: format!("{}[{}]", of.normal, range.normal),
                other: format!("{}{}[{}]", of.other, self.gap(), range.other),
            };
            return self.shifted(ranged).0;
        }
        let (inner, form) = self.vector(depth - 1);
        let step = match self.chance(3) {
            true => Made::same(""),
            false => self.duration(),
        };
        let plain = form == Form::Whole;
        let parens = !plain || self.chance(3);
        let normal = match plain {
            true => inner.normal,
            false => format!("({})", inner.normal),
        };
        let other = match parens {
            true => format!("({})", inner.other),
            false => inner.other,
        };
        let (a, b) = (self.gap(), self.gap());
        let ranged = Made {
            normal: format!("{normal}[{}:{}]", range.normal, step.normal),
            other: format!("{other}[{}{a}:{b}{}]", range.other, step.other),
        };
        self.shifted(ranged).0
    }

    fn call(&mut self, name: &str, arguments: &[Made]) -> Made {
        let normals: Vec<_> = arguments.iter().map(|a| &*a.normal).collect();
        let normal = format!("{name}({})", normals.join(", "));
        let mut other = format!("{name}{}(", self.gap());
        for (n, argument) in arguments.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            let (open, close) = self.one(&[("", ""), ("", ""), ("(", ")"), ("(( ", "))")]);
            let (a, b) = (self.gap(), self.gap());
            let _ = write!(other, "{comma}{a}{open}{}{close}{b}", argument.other);
        }
        other.push(')');
        Made { normal, other }
    }

    /// Returns a scalar, and its kind.
    fn scalar(&mut self, depth: u8) -> (Made, Form) {
        match self.dice.roll(6) {
            0 if depth > 0 => {
                let inner = self.vector(depth - 1).0;
                (self.call("scalar", &[inner]), Form::Whole)
            }
            1 if depth > 0 => {
                let (left, right) = (self.scalar(depth - 1), self.scalar(depth - 1));
                self.binary(left, right, false, false)
            }
            2 => (self.call("time", &[]), Form::Whole),
            3 => (self.call("pi", &[]), Form::Whole),
            4 => {
                let number = self.number();
                let other = format!("-{}{}", self.gap(), number.other);
                let normal = format!("-{}", number.normal);
                (Made { normal, other }, Form::Signed)
            }
            _ => (self.number(), Form::Number),
        }
    }

    /// Returns an operand in parentheses if it needs them, and sometimes if it does not.
    fn operand(&mut self, (made, form): (Made, Form), needed: bool) -> Made {
        let optional = form != Form::Shifted;
        if needed {
            let (open, close) = self.one(&[("(", ")"), ("((", "))"), ("( ", " )")]);
            return Made {
                normal: format!("({})", made.normal),
                other: format!("{open}{}{close}", made.other),
            };
        }
        match optional && self.chance(4) {
            true => Made {
                other: format!("({})", made.other),
                ..made
            },
            false => made,
        }
    }

    fn binary(
        &mut self,
        left: (Made, Form),
        right: (Made, Form),
        vectors: bool,
        one_vector: bool,
    ) -> (Made, Form) {
        let mut operators = vec![
            ("+", 4),
            ("-", 4),
            ("*", 5),
            ("/", 5),
            ("%", 5),
            ("^", 6),
            ("atan2", 5),
            ("==", 3),
            ("!=", 3),
            ("<", 3),
            (">=", 3),
        ];
        if vectors {
            operators.extend([("and", 2), ("or", 1), ("unless", 2)]);
        }
        let (operator, precedence) = self.one(&operators);
        let comparison = precedence == 3;
        let mut normal = format!(" {operator}");
        let (before, word) = match operator.as_bytes()[0].is_ascii_alphabetic() {
            true => (self.space(), self.keyword(operator)),
            false => (self.gap(), operator.to_owned()),
        };
        let mut other = format!("{before}{word}");
        let scalars = !vectors && !one_vector;
        if comparison && (scalars || self.chance(2)) {
            normal += " bool";
            let (space, word) = (self.space(), self.keyword("bool"));
            let _ = write!(other, "{space}{word}");
        }
        if vectors && self.chance(3) {
            let word = self.one(&["on", "ignoring"]);
            let labels = self.labels(&["host", "code"]);
            let _ = write!(normal, " {word} {}", labels.normal);
            let (space, word, gap) = (self.space(), self.keyword(word), self.gap());
            let _ = write!(other, "{space}{word}{gap}{}", labels.other);
            if precedence > 2 && self.chance(3) {
                let word = self.one(&["group_left", "group_right"]);
                let labels = self.labels(&["version", "le"]);
                let _ = write!(normal, " {word} {}", labels.normal);
                let (space, word, gap) = (self.space(), self.keyword(word), self.gap());
                let _ = write!(other, "{space}{word}{gap}{}", labels.other);
            }
        }
        let power = precedence == 6;
        let needs =
            |form: Form| form.precedence() < precedence || form.precedence() == precedence && power;
        let needed_left = needs(left.1);
        let needed_right = match right.1 {
            Form::Binary(inner) => inner < precedence || inner == precedence && !power,
            _ => false,
        };
        let left = self.operand(left, needed_left);
        let right = self.operand(right, needed_right);
        let space = self.space();
        let made = Made {
            normal: format!("{}{normal} {}", left.normal, right.normal),
            other: format!("{}{other}{space}{}", left.other, right.other),
        };
        (made, Form::Binary(precedence))
    }

    /// Returns an instant vector, and its kind.
    fn vector(&mut self, depth: u8) -> (Made, Form) {
        if depth == 0 {
            let selector = self.selector();
            let (made, plain) = self.shifted(selector);
            return (made, if plain { Form::Whole } else { Form::Shifted });
        }
        match self.dice.roll(9) {
            0 | 1 => {
                let (left, right) = (self.vector(depth - 1), self.vector(depth - 1));
                self.binary(left, right, true, false)
            }
            2 => {
                let (left, right) = (self.vector(depth - 1), self.scalar(depth - 1));
                self.binary(left, right, false, true)
            }
            3 => {
                let inner = self.vector(depth - 1);
                let needed = inner.1.precedence() <= 5;
                let inner = self.operand(inner, needed);
                let made = Made {
                    normal: format!("-{}", inner.normal),
                    other: format!("-{}{}", self.gap(), inner.other),
                };
                (made, Form::Signed)
            }
            4 | 5 => (self.aggregate(depth), Form::Whole),
            6 => {
                let function = self.one(&[
                    "rate",
                    "increase",
                    "irate",
                    "delta",
                    "deriv",
                    "changes",
                    "avg_over_time",
                    "max_over_time",
                    "last_over_time",
                    "absent_over_time",
                    "count_over_time",
                ]);
                let inner = self.matrix(depth);
                (self.call(function, &[inner]), Form::Whole)
            }
            7 => (self.function(depth), Form::Whole),
            _ => self.vector(0),
        }
    }

    fn function(&mut self, depth: u8) -> Made {
        let inner = self.vector(depth - 1).0;
        match self.dice.roll(9) {
            0 => {
                let quantile = self.scalar(0).0;
                self.call("histogram_quantile", &[quantile, inner])
            }
            1 => {
                let parts = ["to", "x-$1", "host", "(.*)"];
                let mut all = vec![inner];
                all.extend(parts.iter().map(|p| self.string(p)));
                self.call("label_replace", &all)
            }
            2 => {
                let parts = ["both", "/", "host", "code"];
                let mut all = vec![inner];
                all.extend(parts.iter().map(|p| self.string(p)));
                self.call("label_join", &all)
            }
            3 => {
                let (low, high) = (self.scalar(0).0, self.scalar(depth - 1).0);
                self.call("clamp", &[inner, low, high])
            }
            4 => {
                let to = self.scalar(0).0;
                self.call("round", &[inner, to])
            }
            5 => {
                let value = self.scalar(depth - 1).0;
                self.call("vector", &[value])
            }
            6 => {
                let range = self.matrix(depth);
                let seconds = self.number();
                self.call("predict_linear", &[range, seconds])
            }
            7 => self.call("hour", &[]),
            _ => {
                let name = self.one(&["abs", "ceil", "sort_desc", "absent", "timestamp", "sgn"]);
                self.call(name, &[inner])
            }
        }
    }

    fn aggregate(&mut self, depth: u8) -> Made {
        let name = self.one(&[
            "sum",
            "avg",
            "count",
            "max",
            "topk",
            "quantile",
            "count_values",
        ]);
        let inner = self.vector(depth - 1).0;
        let mut arguments = match name {
            "topk" | "quantile" => vec![self.number()],
            "count_values" => vec![self.string("v")],
            _ => Vec::new(),
        };
        arguments.push(inner);
        let spelled = self.keyword(name);
        let Made { normal, other } = self.call("", &arguments);
        let by = self.one(&["", "by", "by", "without"]);
        if by.is_empty() {
            return Made {
                normal: name.to_owned() + &normal,
                other: spelled + &other,
            };
        }
        let labels = self.labels(&["host", "code", "le", "on", "by"]);
        let bare = by == "by" && labels.normal == "()";
        let (a, b, word) = (self.gap(), self.gap(), self.keyword(by));
        Made {
            normal: match bare {
                true => format!("{name}{normal}"),
                false => format!("{name} {by} {} {normal}", labels.normal),
            },
            other: match self.chance(2) {
                true => format!(
                    "{spelled} {word}{a}{}{b}{}",
                    labels.other,
                    other.trim_start()
                ),
                false => format!("{spelled}{other}{a}{word}{b}{}", labels.other),
            },
        }
    }

    /// Returns `text`, possibly with an error in it.
    fn mutated(&mut self, text: &str) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        for _ in 0..=self.dice.roll(2) {
            let at = self.dice.roll(chars.len() as i64) as usize;
            let other = self.dice.roll(chars.len() as i64) as usize;
            match self.dice.roll(6) {
                _ if chars.is_empty() => chars.push('g'),
                0 => {
                    chars.remove(at);
                }
                1 => chars.swap(at, other),
                2 => {
                    let char = chars[other];
                    chars.insert(at, char);
                }
                3 => {
                    let (from, to) = (at.min(other), at.max(other).min(at.min(other) + 8));
                    let part: Vec<char> = chars[from..to].to_vec();
                    chars.splice(at..at, part);
                }
                4 => {
                    let (from, to) = (at.min(other), at.max(other).min(at.min(other) + 8));
                    chars.drain(from..to);
                }
                _ => {
                    let part = self.one(&[
                        "(",
                        ")",
                        "[",
                        "]",
                        "{",
                        "}",
                        ",",
                        "\"",
                        "'",
                        "`",
                        "\\",
                        "#",
                        "\n",
                        ":",
                        "@",
                        "=",
                        "=~",
                        "!",
                        "~",
                        "<",
                        "5m",
                        "0",
                        "1e",
                        "0x",
                        ".5",
                        " by ",
                        " on ",
                        " bool ",
                        " offset ",
                        "offset -1m",
                        " and ",
                        "or",
                        "-",
                        "+",
                        "^",
                        "==",
                        "[5m]",
                        "[5m:1m]",
                        "{a=\"b\"}",
                        "sum",
                        "rate(",
                        "time()",
                        "é",
                        "\u{fffd}",
                        "\0",
                        "inf",
                        "start()",
                        "group_left",
                        " without (a) ",
                        "(?i)",
                        "\\\\d",
                        "*",
                        "$",
                        ";",
                        "__name__=",
                    ]);
                    chars.splice(at..at, part.chars());
                }
            }
        }
        chars.into_iter().collect()
    }
}

/// Returns the server's formatting of expressions, many in one request.
async fn formatted(rig: &Rig, texts: &[String]) -> Vec<Result<String, String>> {
    let asked = texts.iter().map(|text| async move {
        let reply = rig.post("format_query", &[("query", text)]).await.1;
        let reply: serde_json::Value = serde_json::from_str(&reply).unwrap();
        match reply["data"].as_str() {
            Some(data) => Ok(data.to_owned()),
            None => Err(reply["error"].as_str().unwrap().to_owned()),
        }
    });
    stream::iter(asked).buffered(16).collect().await
}

/// Returns the tokens of `text`, ignoring parentheses and the order of labels.
fn flat(text: &str) -> Vec<String> {
    let mut spaced = String::new();
    for char in text.chars() {
        match char {
            '(' | ')' | ',' => spaced.push(' '),
            // To the server the sign of a number is not a separate operator.
            '+' => spaced.push(' '),
            '-' | '[' => spaced.extend([' ', char, ' ']),
            _ => spaced.push(char),
        }
    }
    let mut words: Vec<_> = spaced.split_whitespace().map(str::to_owned).collect();
    words.sort_unstable();
    words
}

fn colons(text: &str) -> usize {
    text.matches(':').count()
}

fn is_newer(text: &str, said: &str) -> bool {
    let text = text.to_lowercase();
    let mut newer = NEWER.iter();
    newer.any(|(words, signs)| said.contains(words) && signs.iter().any(|s| text.contains(s)))
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_are_read_as_prometheus_reads_them() {
    let Some(rig) = Rig::new().await else { return };
    let mut maker = Maker {
        dice: Dice(5),
        tame: false,
    };
    let mut made: Vec<Made> = Vec::new();
    while made.len() < GENERATED {
        maker.tame = made.len().is_multiple_of(2);
        let depth = 1 + maker.dice.roll(3) as u8;
        let (one, _) = maker.vector(depth);
        if one.other.len() < 2000 {
            made.push(one);
        }
    }
    let mut corpus: Vec<String> = made.iter().map(|m| m.other.clone()).collect();
    let written = KEPT.iter().chain(PASSED).map(|t| (*t).to_owned());
    corpus.extend(written.chain(dashboard_expressions()));
    let sound = corpus.len();
    // Derived only from what is generated here, so that the corpus stays the same.
    for n in 0..MUTATED {
        let from = &made[maker.dice.roll(GENERATED as i64) as usize];
        let text = match from.other.len() {
            ..200 => &from.other,
            _ => SHAPES[n % SHAPES.len()],
        };
        corpus.push(maker.mutated(text));
    }
    let mut wrong = String::new();
    let normals: Vec<String> = corpus.iter().map(|t| canonical(t).into_owned()).collect();
    // The generator knows the normal form.
    for (made, normal) in made.iter().zip(&normals) {
        if *normal != made.normal {
            let _ = writeln!(
                wrong,
                "{:?} is {normal:?}, not {:?}",
                made.other, made.normal
            );
        }
    }
    let direct = formatted(&rig, &corpus).await;
    let of_normal = formatted(&rig, &normals).await;
    let (mut refused, mut newer) = (0, 0);
    for (n, text) in corpus.iter().enumerate() {
        let normal = &normals[n];
        if canonical(normal) != *normal {
            let _ = writeln!(wrong, "{normal:?} of {text:?} is not its own normal form");
        }
        let ours = read(text);
        // Without unknown functions.
        let reads = ours.reads.is_some();
        match (&direct[n], &of_normal[n]) {
            (Ok(direct), Ok(of_normal)) if reads => {
                if flat(direct) != flat(of_normal) {
                    let _ = writeln!(wrong, "{text:?}: {direct:?}, normal {of_normal:?}");
                }
            }
            // 2.42 treats any letter in brackets as a colon.
            (Ok(direct), _) if colons(direct) > colons(text) => {}
            (Ok(_), _) => {
                let _ = writeln!(wrong, "{text:?} is not read: {ours:?}");
            }
            (Err(_), Err(_)) if !reads => refused += 1,
            (Err(said), _) if n >= sound && is_newer(text, said) => newer += 1,
            (Err(said), of_normal) => {
                let _ = writeln!(wrong, "{text:?} is read: {said}; {of_normal:?}");
            }
        }
    }
    println!(
        "{} expressions, {refused} refused, {newer} newer",
        corpus.len()
    );
    assert!(wrong.is_empty(), "{wrong}");
    assert!(refused > 500 && newer < 100, "{refused} {newer}");

    // The normal form has the value of the expression.
    let (start, end) = (START / 1000 + 1800, (START + LENGTH) / 1000 - 1800);
    let (start, end) = (start.to_string(), end.to_string());
    let tame = (0..made.len()).step_by(2);
    let differ: Vec<usize> = tame.filter(|n| corpus[*n] != normals[*n]).collect();
    let (mut compared, mut samples, mut fickle) = (0, 0, 0);
    for n in differ {
        if compared == VALUED {
            break;
        }
        let ask = async |text: &str| {
            let range = [
                ("query", text),
                ("start", &start),
                ("end", &end),
                ("step", "600"),
            ];
            let range = rig.post("query_range", &range).await;
            let instant = rig
                .post("query", &[("query", text), ("time", &start)])
                .await;
            (range, (instant.0, unordered(&instant.1)))
        };
        let (text, normal) = (ask(&corpus[n]).await, ask(&normals[n]).await);
        // The order in which series are summed is not defined.
        let mut differs = false;
        for _ in 0..30 {
            differs |= text != normal && text != ask(&corpus[n]).await;
            if differs || text == normal {
                break;
            }
        }
        if differs {
            fickle += 1;
            continue;
        }
        assert_eq!(normal, text, "{:?} and {:?}", normals[n], corpus[n]);
        compared += 1;
        samples += usize::from(text.0.1.contains("\"values\""));
    }
    println!("{compared} compared, {samples} with samples, {fickle} differ from themselves");
    assert!(compared == VALUED && samples > VALUED / 2 && fickle < 30);
}
