//! Bearer tokens (RFC 6750) and basic authentication (RFC 7617).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use ring::{digest, hmac, rand};
use subtle::{Choice, ConstantTimeEq};
use tokio::sync::OnceCell;

use super::password_hash_limiter::{HashLimiterBusy, PasswordHashLimiter};
use crate::model::{PasswordHash, TokenHash};

/// The fault in a client's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Missing,
    Unreadable,
    Wrong,
}

/// A keyed digest that stands for a user and a password.
type Tag = [u8; 32];

/// The tokens and users with access.
pub struct Credentials {
    tokens: Vec<TokenHash>,
    users: HashMap<Vec<u8>, User>,
    /// A hash that costs as much work as a user's, for unknown users.
    decoy: PasswordHash,
    /// Random, so that tags reveal nothing.
    key: hmac::Key,
    /// Comparisons in progress: clients that send the same credentials wait for the same result.
    under_way: Mutex<HashMap<Tag, Arc<CheckOutcome>>>,
}

type CheckOutcome = OnceCell<Result<bool, HashLimiterBusy>>;

struct User {
    hash: PasswordHash,
    /// The last valid password of each user. Dropped when the files change, as a new value is built then.
    proven: Mutex<Option<Tag>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    /// Admits clients with a token of one of the hashes `tokens`, or as one of `users` with the password
    /// of that hash. Fails if the system has no random numbers.
    pub fn new(
        tokens: Vec<TokenHash>,
        users: impl IntoIterator<Item = (String, PasswordHash)>,
    ) -> Result<Self, String> {
        let user = |(name, hash): (String, PasswordHash)| {
            let proven = Mutex::default();
            (name.into_bytes(), User { hash, proven })
        };
        let users: HashMap<_, _> = users.into_iter().map(user).collect();
        let cost = users.values().map(|u| u.hash.cost()).max();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new());
        Ok(Self {
            tokens,
            users,
            decoy: PasswordHash::decoy(cost.unwrap_or_default()),
            key: key.map_err(|_| "the system has no random numbers")?,
            under_way: Mutex::default(),
        })
    }

    /// Returns the schemes of `Authorization` that are accepted.
    pub(super) fn schemes(&self) -> &'static str {
        match (self.tokens.is_empty(), self.users.is_empty()) {
            (false, false) => "Bearer Basic",
            (false, true) => "Bearer",
            _ => "Basic",
        }
    }

    /// Checks the token, or user and password, in `headers` of `client`.
    pub(super) async fn check(
        &self,
        hash_limiter: &PasswordHashLimiter,
        client: IpAddr,
        headers: &HeaderMap,
    ) -> Result<Result<(), Fault>, HashLimiterBusy> {
        let right = match read(headers) {
            Err(fault) => return Ok(Err(fault)),
            Ok(Sent::Token(token)) => self.knows(token),
            // There are no users: no need to hide that.
            Ok(Sent::User(_)) if self.users.is_empty() => false,
            // Boxed: waiting for a comparison is rare and takes much state.
            Ok(Sent::User(pair)) => Box::pin(self.proves(hash_limiter, client, &pair)).await?,
        };
        Ok(right.then_some(()).ok_or(Fault::Wrong))
    }

    /// Checks `token` in constant time.
    fn knows(&self, token: &[u8]) -> bool {
        let hash = digest::digest(&digest::SHA256, token);
        let equal = |known: &TokenHash| known.bytes().ct_eq(hash.as_ref());
        let found = self.tokens.iter().map(equal);
        found.fold(Choice::from(0), |any, one| any | one).into()
    }

    /// Checks that `pair` is a user with its password.
    async fn proves(
        &self,
        hash_limiter: &PasswordHashLimiter,
        client: IpAddr,
        pair: &Pair,
    ) -> Result<bool, HashLimiterBusy> {
        let mut tag = Tag::default();
        tag.copy_from_slice(hmac::sign(&self.key, &pair.text).as_ref());
        let user = self.users.get(pair.user());
        let proven = || user.is_some_and(|u| u.is_proven(&tag));
        if proven() {
            return Ok(true);
        }
        let shared = SharedCheck::join(&self.under_way, tag);
        let compare = || async {
            // An earlier comparison may have ended meanwhile.
            if proven() {
                return Ok(true);
            }
            let hash = user.map_or(&self.decoy, |u| &u.hash).clone();
            let password = pair.password().to_vec();
            let verify = move || bcrypt::verify(password, hash.as_str()).unwrap_or(false);
            let right = hash_limiter.run(client, verify).await? && user.is_some();
            if let Some(user) = user.filter(|_| right) {
                *locked(&user.proven) = Some(tag);
            }
            Ok(right)
        };
        *shared.outcome.get_or_init(compare).await
    }
}

impl User {
    fn is_proven(&self, tag: &Tag) -> bool {
        let proven = locked(&self.proven);
        proven.is_some_and(|p| p.ct_eq(tag).into())
    }
}

/// A share in a comparison in progress. The last to leave removes it from the list.
struct SharedCheck<'a> {
    list: &'a Mutex<HashMap<Tag, Arc<CheckOutcome>>>,
    tag: Tag,
    outcome: Arc<CheckOutcome>,
}

impl<'a> SharedCheck<'a> {
    fn join(list: &'a Mutex<HashMap<Tag, Arc<CheckOutcome>>>, tag: Tag) -> Self {
        let outcome = locked(list).entry(tag).or_default().clone();
        Self { list, tag, outcome }
    }
}

impl Drop for SharedCheck<'_> {
    fn drop(&mut self) {
        let mut list = locked(self.list);
        // Dropped while the list is locked: of two that leave at once, the second is the last.
        self.outcome = Arc::default();
        if let Entry::Occupied(entry) = list.entry(self.tag)
            && Arc::strong_count(entry.get()) == 1
        {
            entry.remove();
        }
    }
}

/// Values under the locks are replaced whole, so they are sound even after a panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The credentials that a client sent.
#[derive(Debug, PartialEq, Eq)]
enum Sent<'a> {
    Token(&'a [u8]),
    User(Pair),
}

/// `user:password`; the user ends at the first colon.
#[derive(PartialEq, Eq)]
struct Pair {
    text: Vec<u8>,
    colon: usize,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pair(…)")
    }
}

impl Pair {
    fn user(&self) -> &[u8] {
        self.text.get(..self.colon).unwrap_or_default()
    }

    fn password(&self) -> &[u8] {
        self.text.get(self.colon + 1..).unwrap_or_default()
    }
}

/// Reads the `Authorization` header. Two of them are refused: which one counts would be ambiguous.
fn read(headers: &HeaderMap) -> Result<Sent<'_>, Fault> {
    let mut sent = headers.get_all(AUTHORIZATION).iter();
    let value = sent.next().ok_or(Fault::Missing)?.as_bytes();
    if sent.next().is_some() {
        return Err(Fault::Unreadable);
    }
    let space = value.iter().position(|b| *b == b' ');
    let (scheme, rest) = value.split_at(space.ok_or(Fault::Unreadable)?);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") && !rest.is_empty() {
        return Ok(Sent::Token(rest));
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Err(Fault::Unreadable);
    }
    let text = STANDARD.decode(rest).map_err(|_| Fault::Unreadable)?;
    let colon = text.iter().position(|b| *b == b':');
    let colon = colon.ok_or(Fault::Unreadable)?;
    Ok(Sent::User(Pair { text, colon }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use http::HeaderValue;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn authorization(value: &str) -> HeaderMap {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        HeaderMap::from_iter([(AUTHORIZATION, value)])
    }

    fn basic(pair: &str) -> HeaderMap {
        authorization(&format!("Basic {}", STANDARD.encode(pair)))
    }

    fn token(text: &str) -> TokenHash {
        let hex: String = digest::digest(&digest::SHA256, text.as_bytes())
            .as_ref()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        TokenHash::parse(&format!("sha256:{hex}")).unwrap()
    }

    /// Of `ann`, whose password is `secret`.
    fn users() -> Credentials {
        let hash = bcrypt::hash_with_salt("secret", 4, [7; 16]).unwrap();
        let hash = PasswordHash::parse(&hash.to_string()).unwrap();
        Credentials::new(Vec::new(), [("ann".to_owned(), hash)]).unwrap()
    }

    #[test]
    fn the_header_is_read_as_the_standards_say() {
        let one = |value: &str| match read(&authorization(value)) {
            Ok(Sent::Token(token)) => format!("token {}", String::from_utf8_lossy(token)),
            Ok(Sent::User(pair)) => format!(
                "{} has {}",
                String::from_utf8_lossy(pair.user()),
                String::from_utf8_lossy(pair.password())
            ),
            Err(fault) => format!("{fault:?}"),
        };
        assert_eq!(one("Bearer abc"), "token abc");
        assert_eq!(one("bEARER   a b "), "token a b");
        assert_eq!(one("BASIC YTpiOmM="), "a has b:c");
        assert_eq!(one("basic Og=="), " has ");
        assert_eq!(one("Basic 4Ao6/w=="), "\u{fffd}\n has \u{fffd}");
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Basic",
            "Basic YTpi=",
            "Basic YTpiYw",
            "Basic YT piOmM=",
            "Basic YQ==",
            "Basic -_==",
            "Digest username=\"a\"",
            "\u{e4} b",
            "Bearerabc",
        ] {
            assert_eq!(one(bad), "Unreadable", "{bad}");
        }
        assert_eq!(read(&HeaderMap::new()), Err(Fault::Missing));
        let mut two = authorization("Bearer abc");
        two.append(AUTHORIZATION, HeaderValue::from_static("Bearer abc"));
        assert_eq!(read(&two), Err(Fault::Unreadable));
        assert!(!format!("{:?}", read(&basic("ann:secret"))).contains("ann"));
    }

    #[tokio::test]
    async fn any_token_that_is_known_lets_in_and_no_other() {
        let known = Credentials::new(vec![token("one"), token("two")], []).unwrap();
        let hash_limiter = PasswordHashLimiter::of(0, 0);
        assert_eq!(known.schemes(), "Bearer");
        for (header, expected) in [
            (authorization("Bearer one"), Ok(())),
            (authorization("bearer two"), Ok(())),
            (authorization("Bearer tw"), Err(Fault::Wrong)),
            (authorization("Bearer "), Err(Fault::Unreadable)),
            // A hash that was read is no token.
            (authorization("Bearer sha256:00"), Err(Fault::Wrong)),
            (basic("ann:one"), Err(Fault::Wrong)),
            (HeaderMap::new(), Err(Fault::Missing)),
        ] {
            assert_eq!(
                known.check(&hash_limiter, CLIENT, &header).await,
                Ok(expected),
                "{header:?}"
            );
        }
    }

    #[tokio::test]
    async fn users_need_their_password() {
        let (known, hash_limiter) = (users(), PasswordHashLimiter::of(1, 1));
        assert_eq!(known.schemes(), "Basic");
        for (pair, expected) in [
            ("ann:secret", Ok(())),
            ("ann:secret ", Err(Fault::Wrong)),
            ("ann:", Err(Fault::Wrong)),
            ("Ann:secret", Err(Fault::Wrong)),
            (":secret", Err(Fault::Wrong)),
            ("ann:secret", Ok(())),
        ] {
            assert_eq!(
                known.check(&hash_limiter, CLIENT, &basic(pair)).await,
                Ok(expected),
                "{pair}"
            );
        }
        let bearer = authorization("Bearer secret");
        assert_eq!(
            known.check(&hash_limiter, CLIENT, &bearer).await,
            Ok(Err(Fault::Wrong))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_proven_password_is_not_compared_again_and_a_wrong_one_always_is() {
        let (known, open, shut) = (
            users(),
            PasswordHashLimiter::of(1, 1),
            PasswordHashLimiter::of(0, 1),
        );
        let right = basic("ann:secret");
        assert_eq!(
            known.check(&shut, CLIENT, &right).await,
            Err(HashLimiterBusy)
        );
        assert_eq!(known.check(&open, CLIENT, &right).await, Ok(Ok(())));
        assert_eq!(known.check(&shut, CLIENT, &right).await, Ok(Ok(())));
        // A user who does not exist is as much work as one who does.
        for wrong in ["ann:wrong", "bob:secret", "ann:secre", ":ann:secret"] {
            let wrong = basic(wrong);
            assert_eq!(
                known.check(&open, CLIENT, &wrong).await,
                Ok(Err(Fault::Wrong))
            );
            assert_eq!(
                known.check(&shut, CLIENT, &wrong).await,
                Err(HashLimiterBusy)
            );
        }
        // What is made anew remembers nothing.
        assert_eq!(
            users().check(&shut, CLIENT, &right).await,
            Err(HashLimiterBusy)
        );
        assert!(locked(&known.under_way).is_empty());
    }

    #[tokio::test]
    async fn equal_credentials_at_once_share_one_comparison() {
        let (known, hash_limiter) = (users(), PasswordHashLimiter::of(1, 1));
        for (pair, expected) in [("ann:secret", Ok(())), ("ann:wrong", Err(Fault::Wrong))] {
            let header = basic(pair);
            let all = join_all((0..100).map(|_| known.check(&hash_limiter, CLIENT, &header))).await;
            assert!(all.iter().all(|one| *one == Ok(expected)), "{all:?}");
        }
        // Others have no part in it: of these only two find room.
        let others: Vec<_> = (0..20).map(|n| basic(&format!("ann:{n}"))).collect();
        let all = join_all(
            others
                .iter()
                .map(|header| known.check(&hash_limiter, CLIENT, header)),
        )
        .await;
        assert!(all.contains(&Err(HashLimiterBusy)), "{all:?}");
        assert!(locked(&known.under_way).is_empty());
    }

    #[test]
    fn waiters_that_leave_at_once_leave_nothing_behind() {
        let list = Mutex::default();
        let together = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for round in 0..20_000_u16 {
                        let mut tag = Tag::default();
                        tag[..2].copy_from_slice(&round.to_ne_bytes());
                        let shared = SharedCheck::join(&list, tag);
                        together.wait();
                        drop(shared);
                    }
                });
            }
        });
        assert!(locked(&list).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_that_time_out_or_give_up_leave_nothing_behind() {
        let (known, shut) = (users(), PasswordHashLimiter::of(0, 1));
        let header = basic("ann:secret");
        let before = tokio::time::Instant::now();
        assert_eq!(
            known.check(&shut, CLIENT, &header).await,
            Err(HashLimiterBusy)
        );
        assert_eq!(before.elapsed(), Duration::from_secs(2));
        let short = Duration::from_millis(1);
        let given_up = tokio::time::timeout(short, known.check(&shut, CLIENT, &header)).await;
        assert!(given_up.is_err());
        assert!(locked(&known.under_way).is_empty());
        let open = PasswordHashLimiter::of(1, 1);
        assert_eq!(known.check(&open, CLIENT, &header).await, Ok(Ok(())));
    }
}
