//! Checks regular expressions as far as the cache needs it: whether Prometheus accepts one, and
//! whether it matches the empty string. Looks at each character once; nothing is compiled.

/// The most characters of an expression with its repetitions expanded. Go refuses more than
/// 3,355,443 instructions; this stays well below that.
const MOST_INSTANCES: u64 = 2_000_000;

/// The size assumed for a Unicode class; Go limits the ranges of all of them together, too.
const UNICODE_CLASS: u64 = 1000;

/// The deepest nesting of groups that is checked; Go refuses 1,000.
const DEEPEST: usize = 200;

/// The most repetitions, multiplied over nested ones (`repeatIsValid` in Go's
/// `regexp/syntax/parse.go`).
const MOST_REPETITIONS: u64 = 1000;

/// Named classes, without their leading `[`.
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

/// Returns whether a regular expression that is anchored at both ends matches the empty string;
/// `Some(None)` if it contains something that is not checked, `None` if Go's `regexp/syntax`
/// refuses it.
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

/// The properties of a part: of a character, a group, or a sequence.
#[derive(Clone, Copy)]
struct PatternPart {
    matches_empty: bool,
    /// The greatest product of nested repetitions.
    repetitions: u64,
    /// The number of characters with repetitions expanded.
    instances: u64,
}

const CHARACTER: PatternPart = PatternPart {
    matches_empty: false,
    repetitions: 1,
    instances: 1,
};

/// The contents of a group that is still open.
struct OpenGroup {
    /// Whether an alternative before this one matches the empty string.
    matches_empty: bool,
    /// The properties of this alternative, without `last`.
    before: PatternPart,
    /// The part that a repetition would apply to.
    last: Option<PatternPart>,
    /// Whether `last` already has a repetition.
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

    /// Merges `last`, which can no longer be repeated, into `before`.
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
    /// The open groups, the outermost (the whole expression) first.
    open: Vec<OpenGroup>,
    /// Whether everything was checked.
    sure: bool,
}

impl Scan<'_> {
    fn run(mut self) -> Option<Option<bool>> {
        while let Some(char) = self.take() {
            match char {
                '(' => self.open_group()?,
                ')' => {
                    let closed = self.open.pop()?.close();
                    // The whole expression is not a group.
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

    /// Takes `text` if it comes next.
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
            // At most one `-`, followed by at least one flag to switch off.
            let plain = !flags.is_empty() && !flags.contains('-');
            self.rest = after;
            if plain && self.accept(")") {
                // A repetition after it would apply to what precedes it, which is rare and not
                // checked.
                self.sure &= !self.rest.starts_with(['*', '+', '?', '{']);
                return Some(());
            }
            if !plain || !self.accept(":") {
                // Names of groups, and syntax that Go does not have.
                self.sure = false;
                return Some(());
            }
        }
        self.sure &= self.open.len() < DEEPEST;
        self.open.push(OpenGroup::default());
        Some(())
    }

    /// Reads the bounds of a repetition after its `{`; without valid bounds the brace stands for
    /// itself.
    fn bounds(&mut self) -> Option<(u64, Option<u64>)> {
        let is_bound = |b: &u8| b.is_ascii_digit() || *b == b',';
        let length = self.rest.bytes().take_while(is_bound).count();
        let (inside, after) = self.rest.split_at_checked(length)?;
        let after = after.strip_prefix('}')?;
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let zeros = text.len() > 1 && text.starts_with('0');
            // Longer numbers are too large in any case.
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

    /// Reads a class of characters after its `[`.
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
            // A `-` at the end stands for itself.
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

    /// Returns the character that `\` and `char` stand for.
    fn escaped(&mut self, char: char) -> Option<char> {
        match char {
            'a' => Some('\u{7}'),
            'f' => Some('\u{c}'),
            't' => Some('\t'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            'v' => Some('\u{b}'),
            _ if char.is_ascii() && !char.is_ascii_alphanumeric() => Some(char),
            // A single digit other than 0 would be a back-reference, which Go does not have.
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
            // The characters that follow would have to be parsed.
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
            // The empty string has no word boundary.
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

/// Returns an assertion, which matches a position and no character.
fn empty(matches_empty: bool) -> PatternPart {
    PatternPart {
        matches_empty,
        repetitions: 1,
        instances: 1,
    }
}
