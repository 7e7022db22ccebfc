//! Limits of all replicas together: shares and leases of budgets by heartbeat, and permits by the
//! generic cell rate algorithm (ITU-T I.371, annex A) in a script.
//!
//! All of it lies in one slot, so that a script sees it whole. A limit of which the level knows
//! nothing begins empty, not full, so losing data never makes a second burst.

mod budget_scripts;
mod scripts;

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use self::scripts::{MemberId, NOW, RUN, Scripts, ShareKeys, ShareReply};
use super::{RedisLevel, random};
use crate::store::LevelFailure;
use crate::store::joint::{
    JointAsk, JointBudget, JointLimits, JointRests, PERMITS_LAST, PermitAsk, Permits,
};
use crate::store::lease::{LeaseGrant, LeaseReport};
use crate::store::standing::{LATEST_REPLY, SKEW, ShareVerdict};

/// The interval of a replica's reports.
const EVERY: Duration = Duration::from_millis(250);

/// After so many beats in a row without a reply that counts, it is logged.
const MISSES: u32 = 6;

impl RedisLevel {
    /// Keeps `joint` in touch with the level and answers what is asked of it, until the limits are
    /// gone. Within a runtime.
    pub fn keep_limits(
        self: &Arc<Self>,
        joint: &Arc<JointLimits>,
        asked: mpsc::Receiver<JointAsk>,
        forget_after: Duration,
    ) {
        let keeper = Arc::new(Keeper {
            level: self.clone(),
            scripts: Scripts::new(NOW, RUN, SKEW),
            forget_after,
        });
        tokio::spawn(beats(keeper.clone(), Arc::downgrade(joint)));
        tokio::spawn(answers(keeper, Arc::downgrade(joint), asked));
    }
}

/// Speaks with the level about limits.
struct Keeper {
    level: Arc<RedisLevel>,
    scripts: Scripts,
    forget_after: Duration,
}

async fn beats(keeper: Arc<Keeper>, joint: Weak<JointLimits>) {
    let mut misses = 0;
    while let Some(joint) = joint.upgrade() {
        match keeper.report(&joint, false).await {
            Ok(()) => {
                if misses >= MISSES {
                    info!("limits are kept together with other replicas again");
                }
                misses = 0;
            }
            Err(failure) => {
                misses += 1;
                if misses == MISSES {
                    warn!("limits are not kept together with other replicas: {failure}");
                }
            }
        }
        drop(joint);
        let jitter = random().unwrap_or_default() % 30;
        tokio::time::sleep(EVERY + Duration::from_millis(jitter)).await;
    }
}

async fn answers(
    keeper: Arc<Keeper>,
    joint: Weak<JointLimits>,
    mut asked: mpsc::Receiver<JointAsk>,
) {
    while let Some(ask) = asked.recv().await {
        let (keeper, joint) = (keeper.clone(), joint.clone());
        tokio::spawn(async move {
            // Whoever asked may not wait for it any more.
            match ask {
                JointAsk::Permits(ask) => {
                    let permits = keeper.permits(&ask).await;
                    let _ = ask.answer.send(permits);
                }
                JointAsk::Leave(done) => {
                    if let Some(joint) = joint.upgrade() {
                        let _ = keeper.report(&joint, true).await;
                    }
                    let _ = done.send(());
                }
            }
        });
    }
}

impl Keeper {
    async fn report(&self, joint: &JointLimits, leaves: bool) -> Result<(), LevelFailure> {
        let level = &self.level;
        let member = MemberId {
            name: &level.settings.name,
            instance: joint.instance(),
            forget_after: self.forget_after,
        };
        let sent = level.clock.monotonic();
        let (report, budgets) = joint.report(leaves);
        let keys = ShareKeys {
            shares: level.together("shares"),
            budgets: level.together("budgets"),
            rests: level.together("rests"),
        };
        let resting = joint.rests();
        let told = resting.iter().flat_map(|rests| {
            let told = (rests.told)().into_iter();
            told.filter_map(|(at, rest)| Some((self.address(rests, at)?, rest)))
        });
        let told: Vec<_> = told.collect();
        let named = |(budget, lease): &(Arc<JointBudget>, LeaseReport)| {
            let name = self.upstream(budget.upstream());
            (format!("{name}-{}", budget.of()), *lease)
        };
        let leases: Vec<_> = budgets.iter().map(named).collect();
        let command = self
            .scripts
            .beat(&keys, &member, &report, &told, &leases, leaves);
        let reply = timeout(LATEST_REPLY, level.ask::<ShareReply>(&command));
        let (time, epoch, share, live, grants, rests) =
            reply.await.map_err(|_| LevelFailure::Timeout)??;
        let verdict = ShareVerdict {
            time,
            epoch,
            share,
            live,
        };
        if grants.iter().any(|(_, left, _)| *left < 0) {
            warn!(
                "no budget is shared: this replica and the shared second level are minutes apart in time"
            );
        }
        for (id, rest) in rests {
            let rest = Duration::from_millis(u64::try_from(rest).unwrap_or(0));
            // What is left of it may be the time that messages took.
            if rest > LATEST_REPLY {
                self.rest(&resting, &id, rest);
            }
        }
        let grants = grants.into_iter().map(grant);
        let budgets: Vec<_> = budgets.into_iter().zip(grants).collect();
        match joint.replied(verdict, &budgets, sent) {
            true => Ok(()),
            false if epoch == 0 => Err(LevelFailure::Error(
                "it has lost its data, and waits for what others had of the limits".into(),
            )),
            false => Err(LevelFailure::Timeout),
        }
    }

    /// Lets the addresses rest that have the name `id` for the level.
    fn rest(&self, all: &[Arc<JointRests>], id: &str, rest: Duration) {
        for rests in all {
            for at in 0..rests.urls.len() {
                if self.address(rests, at).is_some_and(|name| name == id) {
                    (rests.take)(at, rest);
                }
            }
        }
    }

    /// Returns the name for the level of the address at the position `at`.
    fn address(&self, rests: &JointRests, at: usize) -> Option<String> {
        let url = rests.urls.get(at)?;
        Some(self.upstream(&format!("{}\n{url}", rests.upstream)))
    }

    /// Returns the name of an upstream for the level.
    fn upstream(&self, name: &str) -> String {
        let name = self.level.names.upstream(name.as_bytes()).0;
        name.iter().map(|b| format!("{b:02x}")).collect()
    }

    async fn permits(&self, ask: &PermitAsk) -> Result<Permits, LevelFailure> {
        let level = &self.level;
        let key = level.together(&format!("limit:{}", self.upstream(&ask.upstream)));
        let command = self.scripts.permits(&level.together("shares"), &key, ask);
        let reply = timeout(PERMITS_LAST, level.ask::<(u32, f64)>(&command));
        let (granted, wait) = reply.await.map_err(|_| LevelFailure::Timeout)??;
        Ok(Permits {
            granted,
            wait: Duration::try_from_secs_f64(wait / 1000.0).unwrap_or_default(),
        })
    }
}

/// Returns what a reply says of one budget.
fn grant((leased, left, next): (u32, i64, i64)) -> LeaseGrant {
    LeaseGrant {
        leased,
        left: u32::try_from(left).ok(),
        next: u32::try_from(next).ok(),
    }
}

#[cfg(test)]
mod tests;
