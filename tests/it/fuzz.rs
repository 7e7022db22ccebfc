//! The entry points of `fuzz/`, run on stable Rust: on their corpus, on deeply nested and very long
//! inputs, and on mutations of the corpus. `HELIOSTAT_FUZZ_ROUNDS` sets the number of mutations,
//! `HELIOSTAT_FUZZ_SEED` the seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

#[path = "../../fuzz/entry.rs"]
mod entry;

/// Mutations per entry; at most some seconds in a debug build.
const ROUNDS: u64 = 500;

/// Pseudo-random numbers (xorshift64*, Vigna 2016).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `n`, or 0.
    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// The building blocks: extreme numbers and times, unusual text, pieces of each language.
const WORDS: &[&str] = &[
    "0",
    "-1",
    "1e400",
    "-1e400",
    "1e-400",
    "NaN",
    "Infinity",
    "inf",
    "null",
    "true",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "18446744073709551616",
    "253402300800000",
    "253402300799.9999",
    "8999999999999999",
    "1700000100000",
    "1700000100",
    "0.1",
    "1E5",
    "-0",
    "00",
    "\\ud800",
    "\\udc00\\ud800",
    "\\u0000",
    "\u{feff}",
    "\u{2028}",
    "é",
    "𝕏",
    "\0",
    "\r\n",
    "\"",
    "\\",
    "'",
    "`",
    "\"\"\"",
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    "[[",
    "]]",
    "{}",
    "[]",
    ",",
    ":",
    "=",
    "#",
    " ",
    "\n",
    ".",
    "offset ",
    "@ ",
    "start()",
    "[5m]",
    "[1h:]",
    "99999999999y",
    "1h1h",
    "by (",
    "=~",
    "bool ",
    "\"0s\"",
    "\"99999999999TiB\"",
    "[[upstream]]\n",
    "[upstream]\n",
    "[server]\n",
    "1979-05-27",
    "0x",
    "_type",
    "InSetValue",
    "values",
    "histograms",
    "resultType",
    "&step=",
    "%ff",
    "%",
    "+",
];

fn mutated(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut text = corpus[dice.below(corpus.len())].clone();
    for _ in 0..=dice.below(5) {
        let at = dice.below(text.len() + 1);
        let to = (at + dice.below(30)).min(text.len());
        match dice.below(8) {
            0 if at < text.len() => text[at] ^= 1 << dice.below(8),
            1 => text.truncate(at),
            2 => drop(text.drain(at..to)),
            3 => {
                let piece = text[at..to].to_vec();
                text.splice(at..at, piece.repeat(1 + dice.below(20)));
            }
            4 => {
                let other = &corpus[dice.below(corpus.len())];
                let from = dice.below(other.len() + 1);
                let until = (from + dice.below(200)).min(other.len());
                text.splice(at..to, other[from..until].iter().copied());
            }
            5 => {
                // Replaces one number by another.
                let digits = |b: &u8| b.is_ascii_digit();
                let from = text[at..].iter().position(digits).map_or(at, |n| at + n);
                let len = text[from..].iter().take_while(|b| digits(b)).count();
                let word = dice.pick(WORDS).bytes();
                text.splice(from..from + len, word);
            }
            _ => {
                let word = dice.pick(WORDS).bytes();
                text.splice(at..at, word);
            }
        }
    }
    text
}

/// Deep nesting and great lengths, alone and in the middle of each of `corpus`.
fn bombs(corpus: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let pieces = [
        "[",
        "{",
        "(",
        "[[",
        "{\"a\":",
        "[{\"a\":",
        "a={",
        "a.",
        "a.b={c=",
        "abs(",
        "-",
        "a+",
        "a[1m:]",
        "9",
        "\"",
        "\\",
        "\\u",
        "=[",
        "[a]\n",
        "[[a]]\n",
        "x='''",
        "#",
        " ",
        "\n",
        "é",
        "%",
        "sum by (a) (",
        "{a=\"",
        "a=1\n",
        "{\"telemetry\":",
        "1.",
        "e",
        "-(",
        "!",
        "a[",
    ];
    for piece in pieces {
        all.push(piece.repeat(200_000 / (1 + piece.len())).into_bytes());
    }
    for text in corpus {
        let middle = text.len() / 2;
        let value = text
            .windows(2)
            .position(|w| w == b": " || w == b"= " || w == b"\":");
        for at in [Some(middle), value.map(|at| at + 2)].into_iter().flatten() {
            for piece in ["[", "{\"a\":", "(", "{a="] {
                let mut bomb = text.clone();
                bomb.splice(at..at, piece.repeat(5_000).bytes());
                all.push(bomb);
            }
        }
    }
    all
}

#[allow(
    clippy::disallowed_methods,
    reason = "who runs the tests says for how long"
)]
pub(crate) fn number(name: &str, usual: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(usual, |text| text.parse().expect("a number"))
}

/// Runs `entry` on the corpus of `name`, and on inputs derived from it.
fn run(name: &str, entry: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
    assert!(corpus.len() >= 5, "{} has no corpus", folder.display());
    let seed = number("HELIOSTAT_FUZZ_SEED", 20_261_121);
    let rounds = number("HELIOSTAT_FUZZ_ROUNDS", ROUNDS);
    let attempt = |what: String, input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| entry(input))).is_err() {
            let found = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.found"));
            std::fs::write(&found, input).unwrap();
            let shown: String = input
                .escape_ascii()
                .to_string()
                .chars()
                .take(3000)
                .collect();
            panic!(
                "{name}: {what}, seed {seed}: {shown}\nwhole in {}",
                found.display()
            );
        }
    };
    for (file, input) in files.iter().zip(&corpus) {
        attempt(file.display().to_string(), input);
    }
    for (number, bomb) in bombs(&corpus).iter().enumerate() {
        attempt(format!("bomb {number}"), bomb);
    }
    let mut dice = Dice(seed);
    for round in 0..rounds {
        attempt(format!("round {round}"), &mutated(&corpus, &mut dice));
    }
}

#[test]
fn requests() {
    run("mirror_request", entry::mirror_request);
}

#[test]
fn answers_of_upstreams() {
    run("upstream_answer", entry::upstream_answer);
}

#[test]
fn configurations() {
    run("configuration", entry::configuration);
}

#[test]
fn expressions() {
    run("promql", entry::promql);
}

#[test]
fn values_of_a_second_level() {
    run("stored_value", entry::stored_value);
}

#[test]
fn a_finding_is_told_with_its_input() {
    let faulty = |data: &[u8]| assert!(!data.contains(&b'7'), "sevens");
    let found = catch_unwind(|| run("promql", faulty)).unwrap_err();
    let said = found.downcast_ref::<String>().unwrap();
    assert!(
        said.contains("long_offset") || said.contains("long_range"),
        "{said}"
    );
    assert!(said.contains("seed 20261121"), "{said}");
    let input = Path::new(env!("CARGO_TARGET_TMPDIR")).join("promql.found");
    assert!(std::fs::read(input).unwrap().contains(&b'7'));
}
