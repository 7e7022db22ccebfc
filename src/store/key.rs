//! Names of values. Two processes share data exactly if they give it the same name, so a name is
//! made of everything that decides what the data is.

use ring::hmac;

/// The version of the canonical form; another version names everything differently.
const FORM: &[u8] = b"heliostat lane 1";

/// The canonical form of an identity: parts that cannot run into each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Canonical(Vec<u8>);

impl Canonical {
    /// Adds a part, whatever bytes it has.
    pub fn part(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.0.extend((bytes.len() as u64).to_le_bytes());
        self.0.extend(bytes);
        self
    }

    /// Adds a number.
    pub fn number(&mut self, number: i64) -> &mut Self {
        self.part(number.to_le_bytes())
    }

    /// Adds a part that may be absent, which is not the same as an empty one.
    pub fn maybe(&mut self, bytes: Option<impl AsRef<[u8]>>) -> &mut Self {
        match bytes {
            None => self.part([0]),
            Some(bytes) => self.part([1]).part(bytes),
        }
    }

    /// Adds a list with its length.
    pub fn list<T: AsRef<[u8]>>(&mut self, list: impl ExactSizeIterator<Item = T>) -> &mut Self {
        self.number(i64::try_from(list.len()).unwrap_or(i64::MAX));
        list.fold(self, |form, item| form.part(item))
    }

    /// Adds a list of names and values with its length.
    pub fn pairs<'a, N: AsRef<[u8]> + 'a, V: AsRef<[u8]> + 'a>(
        &mut self,
        pairs: impl ExactSizeIterator<Item = &'a (N, V)>,
    ) -> &mut Self {
        self.number(i64::try_from(pairs.len()).unwrap_or(i64::MAX));
        pairs.fold(self, |form, (name, value)| form.part(name).part(value))
    }

    /// Returns the bytes of the form.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The name of a lane within a level, which reveals nothing about the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneName(pub [u8; 32]);

/// The name of an upstream's data within a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamName(pub [u8; 16]);

/// The place of a value in its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// The page with this number on the epoch grid.
    Page(i64),
    /// The tail after its last page.
    Tail,
    /// The newest whole answer of a query.
    Whole,
}

impl Slot {
    /// Returns the slot as a number that no other slot has.
    pub(super) fn number(self) -> i64 {
        match self {
            Self::Page(index) => index,
            // No page begins that far before the epoch.
            Self::Tail => i64::MIN,
            Self::Whole => i64::MIN + 1,
        }
    }
}

/// The key of a value: the start of its lane's name, and its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ValueKey {
    /// The first half of the lane's name; the whole of it is in the value.
    pub lane: [u8; 16],
    /// [`Slot`] as a number.
    pub slot: i64,
}

impl ValueKey {
    /// Returns the key of `slot` of `lane`.
    pub fn new(lane: &LaneName, slot: Slot) -> Self {
        Self {
            lane: half(&lane.0),
            slot: slot.number(),
        }
    }
}

fn half(name: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(name.split_at(16).0);
    half
}

/// Gives names, by HMAC-SHA-256 with a secret that all replicas of the level have.
pub struct Names(hmac::Key);

impl Names {
    /// Returns names by `secret`.
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Returns the name of the lane `lane` of the upstream whose data is `upstream`.
    pub fn lane(&self, upstream: &[u8], lane: &Canonical) -> LaneName {
        let mut form = Canonical::default();
        form.part(upstream).part(lane.bytes());
        LaneName(self.name(&[FORM, b"lane", form.bytes()]))
    }

    /// Returns the name of an upstream's data.
    pub fn upstream(&self, upstream: &[u8]) -> UpstreamName {
        UpstreamName(half(&self.name(&[FORM, b"data", upstream])))
    }

    /// Returns the key that values of `lane` are sealed with.
    pub fn sealing(&self, lane: &[u8; 16]) -> [u8; 32] {
        self.name(&[FORM, b"seal", lane])
    }

    fn name(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(part);
        }
        let mut name = [0; 32];
        // The tag of SHA-256 has 32 bytes.
        for (to, from) in name.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        let form = |parts: &[&str]| {
            let mut form = Canonical::default();
            parts.iter().for_each(|part| {
                form.part(part);
            });
            form
        };
        assert_ne!(form(&["ab", "c"]), form(&["a", "bc"]));
        assert_ne!(form(&["ab"]), form(&["ab", ""]));
        let maybe = |text: Option<&str>| {
            let mut form = Canonical::default();
            form.maybe(text);
            form
        };
        assert_ne!(maybe(None), maybe(Some("")));
        let list = |items: &[&str], more: &str| {
            let mut form = Canonical::default();
            form.list(items.iter()).part(more);
            form
        };
        assert_ne!(list(&["a", "b"], "c"), list(&["a"], "b"));
    }

    #[test]
    fn names_depend_on_the_secret_and_on_every_part_and_never_change() {
        let (mut upstream, mut lane) = (Canonical::default(), Canonical::default());
        let upstream = upstream.part("store").bytes();
        lane.part("cpu");
        let name = Names::new(b"secret").lane(upstream, &lane);
        assert_ne!(name, Names::new(b"other").lane(upstream, &lane));
        assert_ne!(name, Names::new(b"secret").lane(b"", &lane));
        // What is stored under a name must be found by later builds.
        assert_eq!(
            name.0[..8],
            [0x2f, 0xfa, 0x4e, 0x4f, 0x26, 0xf8, 0x37, 0xf6],
            "{:02x?}",
            name.0
        );
        let key = ValueKey::new(&name, Slot::Page(7));
        assert_eq!((&key.lane[..], key.slot), (&name.0[..16], 7));
        assert_ne!(ValueKey::new(&name, Slot::Tail), key);
    }

    proptest! {
        #[test]
        fn two_forms_are_the_same_exactly_if_their_parts_are(
            a in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 0..4),
            b in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 0..4),
        ) {
            let form = |parts: &[Vec<u8>]| {
                let mut form = Canonical::default();
                for part in parts {
                    form.part(part);
                }
                form
            };
            prop_assert_eq!(form(&a) == form(&b), a == b);
        }
    }
}
