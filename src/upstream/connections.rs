//! Pools of connections, and when they are dropped.
//!
//! A pool cannot be told to drop its idle connections, but it does so when its client is dropped.
//! So a client lives for [`GREATEST_AGE`], so that names are looked up again, and one that lost a
//! used connection, or that must have a new one, is replaced by another for that origin alone.
//! Requests in flight end with the client that they began with.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::{Error, Kind};
use crate::reloadable::Reloadable;

/// The greatest age of connections.
const GREATEST_AGE: Duration = Duration::from_secs(300);

/// Builds a client without connections.
pub type ClientRecipe = Arc<dyn Fn() -> Result<reqwest::Client, String> + Send + Sync>;

/// Scheme, host and port of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct UrlOrigin(String);

impl UrlOrigin {
    pub(super) fn of(url: &str) -> Self {
        let after = url.find("://").map_or(0, |at| at + 3);
        let rest = url.get(after..).unwrap_or_default();
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        Self(url.get(..after + end).unwrap_or(url).to_owned())
    }
}

/// A client and its pool.
pub(super) struct PooledClient {
    pub(super) client: reqwest::Client,
    recipe: ClientRecipe,
    born: Instant,
    /// The origins that have answered a call, to which there may be idle connections.
    answered: RwLock<HashSet<UrlOrigin>>,
}

impl PooledClient {
    /// Returns whether a call to `origin` may go over a connection that was used before.
    pub(super) fn has_answered(&self, origin: &UrlOrigin) -> bool {
        let answered = self.answered.read();
        answered
            .unwrap_or_else(PoisonError::into_inner)
            .contains(origin)
    }

    /// Takes in that `origin` has answered a call.
    pub(super) fn answered(&self, origin: &UrlOrigin) {
        if !self.has_answered(origin) {
            let answered = self.answered.write();
            let mut answered = answered.unwrap_or_else(PoisonError::into_inner);
            answered.insert(origin.clone());
        }
    }

    fn is_good(&self, recipe: &ClientRecipe, now: Instant) -> bool {
        Arc::ptr_eq(&self.recipe, recipe) && now.duration_since(self.born) < GREATEST_AGE
    }
}

/// The clients of one transport.
pub(super) struct Connections {
    recipe: Reloadable<ClientRecipe>,
    // A plain mutex: it is held for a look-up and never across an await.
    clients: Mutex<Clients>,
}

struct Clients {
    /// The client of all origins that have none of their own.
    shared: Arc<PooledClient>,
    own: HashMap<UrlOrigin, Arc<PooledClient>>,
}

impl Connections {
    pub(super) fn new(recipe: Reloadable<ClientRecipe>) -> Result<Self, String> {
        let current = recipe.get();
        let shared = generation(&current, current()?);
        let clients = Mutex::new(Clients {
            shared,
            own: HashMap::new(),
        });
        Ok(Self { recipe, clients })
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        // Entries are replaced whole.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the client for a call to `origin`; a new one, if it must have a `new` connection.
    pub(super) async fn current(
        &self,
        origin: &UrlOrigin,
        new: bool,
    ) -> Result<Arc<PooledClient>, Error> {
        let recipe = ClientRecipe::clone(&self.recipe.get());
        let now = Instant::now();
        {
            let mut clients = self.clients();
            if !new {
                clients.own.retain(|_, own| own.is_good(&recipe, now));
                let own = clients.own.get(origin).cloned();
                if let Some(own) = own {
                    return Ok(own);
                }
                if clients.shared.is_good(&recipe, now) {
                    return Ok(clients.shared.clone());
                }
            }
        }
        let made = made(recipe).await?;
        let mut clients = self.clients();
        match new {
            true => {
                clients.own.insert(origin.clone(), made.clone());
            }
            false => clients.shared = made.clone(),
        }
        Ok(made)
    }

    /// Returns the client for a call to `origin` that lost a used connection of `lost`.
    pub(super) async fn after(
        &self,
        origin: &UrlOrigin,
        lost: &Arc<PooledClient>,
    ) -> Result<Arc<PooledClient>, Error> {
        let newer = |clients: &Clients| {
            let own = clients.own.get(origin)?;
            // Another call that lost a connection has replaced the client already.
            (own.born >= lost.born && !Arc::ptr_eq(own, lost)).then(|| own.clone())
        };
        if let Some(own) = newer(&self.clients()) {
            return Ok(own);
        }
        let made = made(ClientRecipe::clone(&self.recipe.get())).await?;
        let mut clients = self.clients();
        if let Some(own) = newer(&clients) {
            return Ok(own);
        }
        clients.own.insert(origin.clone(), made.clone());
        Ok(made)
    }
}

/// Returns a client of `recipe`: reading the system's authorities takes milliseconds.
async fn made(recipe: ClientRecipe) -> Result<Arc<PooledClient>, Error> {
    let make = recipe.clone();
    let client = tokio::task::spawn_blocking(move || make()).await;
    let client = client.unwrap_or_else(|e| Err(e.to_string()));
    let client = client.map_err(|e| Error::new(Kind::Internal, e))?;
    Ok(generation(&recipe, client))
}

fn generation(recipe: &ClientRecipe, client: reqwest::Client) -> Arc<PooledClient> {
    Arc::new(PooledClient {
        client,
        recipe: recipe.clone(),
        born: Instant::now(),
        answered: RwLock::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (url, origin) in [
            ("http://host:9090/a/b?c=http://d/", "http://host:9090"),
            ("https://[::1]:1", "https://[::1]:1"),
            ("https://host?x", "https://host"),
        ] {
            assert_eq!(UrlOrigin::of(url).0, origin);
        }
    }

    fn connections() -> Connections {
        let recipe: ClientRecipe = Arc::new(|| {
            let built = super::super::Http::builder().build();
            built.map_err(|e| e.to_string())
        });
        Connections::new(Reloadable::fixed(recipe)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn clients_are_replaced_by_age_and_where_a_connection_was_lost() {
        let connections = connections();
        let [a, b] = ["http://a", "http://b"].map(UrlOrigin::of);
        let first = connections.current(&a, false).await.unwrap();
        let same = |x: &Arc<PooledClient>, y: &Arc<PooledClient>| Arc::ptr_eq(x, y);
        assert!(same(&first, &connections.current(&b, false).await.unwrap()));
        let second = connections.after(&a, &first).await.unwrap();
        assert!(!same(&first, &second));
        // All that lost a connection of the first go on with the same.
        assert!(same(&second, &connections.after(&a, &first).await.unwrap()));
        assert!(same(
            &second,
            &connections.current(&a, false).await.unwrap()
        ));
        assert!(same(&first, &connections.current(&b, false).await.unwrap()));
        let new = connections.current(&b, true).await.unwrap();
        assert!(!same(&first, &new));
        tokio::time::advance(GREATEST_AGE).await;
        let third = connections.current(&a, false).await.unwrap();
        assert!(!same(&first, &third) && !same(&second, &third));
        assert!(same(&third, &connections.current(&b, false).await.unwrap()));
    }
}
