//! Regular expressions, as far as they must be known: whether Prometheus takes one, and whether it
//! matches the empty string. One look at each character; nothing is compiled.

/// Most characters that an expression comes to with its repetitions written out. Go refuses more
/// than 3,355,443 instructions; what is near to that we do not vouch for.
const MOST_INSTANCES: u64 = 2_000_000;

/// The count of a Unicode class; Go bounds the ranges of all of them together, too.
const UNICODE_CLASS: u64 = 1000;

/// Deeper groups we do not vouch for; Go refuses 1,000.
const DEEPEST: usize = 200;

/// Most repetitions, all that are inside of one another multiplied (`repeatIsValid` in Go's
/// `regexp/syntax/parse.go`).
const MOST_REPETITIONS: u64 = 1000;

/// Classes by name, behind their `[`.
const NAMED: [&str; 14] = [
    ":alnum:]",
    ":alpha:]",
    ":ascii:]",
    ":blank:]",
    ":cntrl:]",
    ":digit:]",
    ":graph:]",
    ":lower:]",
    ":print:]",
    ":punct:]",
    ":space:]",
    ":upper:]",
    ":word:]",
    ":xdigit:]",
];

/// Whether a regular expression that is anchored at both ends matches the empty string; `Some(None)`
/// if it holds something that is not looked into, `None` if Go's `regexp/syntax` refuses it.
pub(super) fn scan(pattern: &[u8]) -> Option<Option<bool>> {
    let Ok(text) = std::str::from_utf8(pattern) else {
        return Some(None);
    };
    Scan {
        rest: text,
        open: vec![OpenGroup::default()],
        sure: true,
    }
    .run()
}

/// The properties of a part: of a character, a group, or what stands side by side.
#[derive(Clone, Copy)]
struct PatternPart {
    matches_empty: bool,
    /// The greatest product of repetitions inside.
    repetitions: u64,
    /// Number of characters once repetitions are written out.
    instances: u64,
}

const CHARACTER: PatternPart = PatternPart {
    matches_empty: false,
    repetitions: 1,
    instances: 1,
};

/// The inside of a group that is not closed yet.
struct OpenGroup {
    /// Whether an alternative before this one matches the empty string.
    matches_empty: bool,
    /// The total of this alternative, without `last`.
    before: PatternPart,
    /// The part that a repetition would repeat.
    last: Option<PatternPart>,
    /// Whether `last` is repeated already.
    repeated: bool,
}

impl Default for OpenGroup {
    fn default() -> Self {
        Self {
            matches_empty: false,
            before: PatternPart {
                matches_empty: true,
                repetitions: 1,
                instances: 0,
            },
            last: None,
            repeated: false,
        }
    }
}

impl OpenGroup {
    fn push(&mut self, part: PatternPart) {
        self.settle();
        self.last = Some(part);
    }

    /// Takes what can no longer be repeated to what is before.
    fn settle(&mut self) {
        self.repeated = false;
        if let Some(last) = self.last.take() {
            self.before.matches_empty &= last.matches_empty;
            self.before.repetitions = self.before.repetitions.max(last.repetitions);
            self.before.instances = self.before.instances.saturating_add(last.instances);
        }
    }

    fn alternative(&mut self) {
        self.settle();
        self.matches_empty |= self.before.matches_empty;
        self.before.matches_empty = true;
    }

    fn close(mut self) -> PatternPart {
        self.alternative();
        PatternPart {
            matches_empty: self.matches_empty,
            ..self.before
        }
    }
}

struct Scan<'a> {
    rest: &'a str,
    /// The groups that are open, the whole first.
    open: Vec<OpenGroup>,
    /// Whether all has been looked into.
    sure: bool,
}

impl Scan<'_> {
    fn run(mut self) -> Option<Option<bool>> {
        while let Some(char) = self.take() {
            match char {
                '(' => self.open_group()?,
                ')' => {
                    let closed = self.open.pop()?.close();
                    // The whole is no group.
                    self.open.last_mut()?.push(closed);
                }
                '|' => self.open.last_mut()?.alternative(),
                '*' => self.repeat(0, None)?,
                '+' => self.repeat(1, None)?,
                '?' => self.repeat(0, Some(1))?,
                '{' => match self.bounds() {
                    Some((least, most)) => self.repeat(least, most)?,
                    None => self.push(CHARACTER)?,
                },
                '^' | '$' => self.push(empty(true))?,
                '[' => self.class()?,
                '\\' => self.escape()?,
                _ => self.push(CHARACTER)?,
            }
            if !self.sure {
                return Some(None);
            }
        }
        let whole = self.open.pop()?.close();
        if !self.open.is_empty() {
            return None;
        }
        let known = whole.instances <= MOST_INSTANCES;
        Some(known.then_some(whole.matches_empty))
    }

    fn take(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let char = chars.next()?;
        self.rest = chars.as_str();
        Some(char)
    }

    /// Takes `text` if it stands next.
    fn accept(&mut self, text: &str) -> bool {
        let after = self.rest.strip_prefix(text);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn push(&mut self, part: PatternPart) -> Option<()> {
        self.open.last_mut()?.push(part);
        Some(())
    }

    fn open_group(&mut self) -> Option<()> {
        if self.accept("?") && !self.accept(":") {
            let is_flag = |c: char| "imsU-".contains(c);
            let after = self.rest.trim_start_matches(is_flag);
            let flags = self.rest.strip_suffix(after).unwrap_or_default();
            // `-` once at most, and something to switch off behind it.
            let plain = !flags.is_empty() && !flags.contains('-');
            self.rest = after;
            if plain && self.accept(")") {
                // A repetition behind it would be of what is before it: seldom, and odd.
                self.sure &= !self.rest.starts_with(['*', '+', '?', '{']);
                return Some(());
            }
            if !plain || !self.accept(":") {
                // Names of groups, and what Go does not know.
                self.sure = false;
                return Some(());
            }
        }
        self.sure &= self.open.len() < DEEPEST;
        self.open.push(OpenGroup::default());
        Some(())
    }

    /// The bounds of a repetition behind its `{`, which stands for itself if they are none.
    fn bounds(&mut self) -> Option<(u64, Option<u64>)> {
        let is_bound = |b: &u8| b.is_ascii_digit() || *b == b',';
        let length = self.rest.bytes().take_while(is_bound).count();
        let (inside, after) = self.rest.split_at_checked(length)?;
        let after = after.strip_prefix('}')?;
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let zeros = text.len() > 1 && text.starts_with('0');
            // What is longer is too many in any case.
            let short = text.get(..9).unwrap_or(text);
            (plain && !zeros).then(|| short.parse::<u64>().ok())?
        };
        let found = match inside.split_once(',') {
            None => {
                let n = number(inside)?;
                (n, Some(n))
            }
            Some((least, "")) => (number(least)?, None),
            Some((least, most)) => (number(least)?, Some(number(most)?)),
        };
        self.rest = after;
        Some(found)
    }

    fn repeat(&mut self, least: u64, most: Option<u64>) -> Option<()> {
        let counted = most != Some(1) && (least > 1 || most.is_some());
        if least > MOST_REPETITIONS || most.is_some_and(|m| m > MOST_REPETITIONS || m < least) {
            return None;
        }
        self.accept("?");
        let group = self.open.last_mut()?;
        // Nothing to repeat, or a repetition of a repetition.
        let last = group.last.as_mut().filter(|_| !group.repeated)?;
        group.repeated = true;
        last.matches_empty |= least == 0;
        let times = most.unwrap_or(least);
        if counted {
            last.repetitions = last.repetitions.saturating_mul(times);
            if last.repetitions > MOST_REPETITIONS {
                return None;
            }
        }
        last.instances = last.instances.saturating_mul(times.max(1));
        Some(())
    }

    /// A class of characters behind its `[`.
    fn class(&mut self) -> Option<()> {
        self.accept("^");
        let mut first = true;
        loop {
            let low = match self.take()? {
                ']' if !first => return self.push(CHARACTER),
                '[' if self.rest.starts_with(':') => {
                    if !NAMED.iter().any(|name| self.accept(name)) {
                        self.sure = false;
                        return Some(());
                    }
                    None
                }
                '\\' => match self.take()? {
                    'd' | 'D' | 's' | 'S' | 'w' | 'W' => None,
                    char => Some(self.escaped(char)?),
                },
                char => Some(char),
            };
            first = false;
            // A `-` before the end stands for itself.
            let Some(low) =
                low.filter(|_| self.rest.starts_with('-') && !self.rest.starts_with("-]"))
            else {
                continue;
            };
            self.accept("-");
            let high = match self.take()? {
                '\\' => {
                    let char = self.take()?;
                    self.escaped(char)?
                }
                char => char,
            };
            if self.sure && high < low {
                return None;
            }
        }
    }

    /// The character that `\` and `char` stand for.
    fn escaped(&mut self, char: char) -> Option<char> {
        match char {
            'a' => Some('\u{7}'),
            'f' => Some('\u{c}'),
            't' => Some('\t'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            'v' => Some('\u{b}'),
            _ if char.is_ascii() && !char.is_ascii_alphanumeric() => Some(char),
            // A single digit but 0 would be a reference, which Go does not know.
            '0'..='7' => {
                let mut value = u32::from(char) - u32::from('0');
                let mut lone = char != '0';
                for _ in 0..2 {
                    let digit = self.rest.chars().next().and_then(|c| c.to_digit(8));
                    let Some(digit) = digit else { break };
                    self.take();
                    value = value * 8 + digit;
                    lone = false;
                }
                char::from_u32(value).filter(|_| !lone)
            }
            // What follows would have to be looked into.
            'x' | 'p' | 'P' | 'Q' => {
                self.sure = false;
                Some(char)
            }
            _ => None,
        }
    }

    fn escape(&mut self) -> Option<()> {
        match self.take()? {
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => self.push(CHARACTER),
            'A' | 'z' | 'B' => self.push(empty(true)),
            // Nothing is a word's edge in an empty string.
            'b' => self.push(empty(false)),
            'p' | 'P' => {
                self.sure &= ["L", "M", "N", "P", "S", "Z"]
                    .iter()
                    .any(|c| self.accept(c));
                self.push(PatternPart {
                    instances: UNICODE_CLASS,
                    ..CHARACTER
                })
            }
            char => {
                self.escaped(char)?;
                self.push(CHARACTER)
            }
        }
    }
}

/// Returns an assertion, which matches a place and no character.
fn empty(matches_empty: bool) -> PatternPart {
    PatternPart {
        matches_empty,
        repetitions: 1,
        instances: 1,
    }
}
