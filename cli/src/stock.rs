//! The package store, as deployments use it: what hosts run as far as we know, and what makes one package from another.

use async_trait::async_trait;
use roadie_deployer::Stock;
use roadie_model::id::{HostName, PackageId, ServiceName};
use roadie_model::package::{Delta, Means, Package};
use roadie_packager::Store;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OnceCell, Semaphore};

/// Patches encoded at the same time: each holds both packages in memory, and takes all cores.
const ENCODERS: usize = 2;

/// One patch, for all hosts that need it.
type Cell = Arc<OnceCell<Option<Arc<Delta>>>>;

/// A [`Store`] for a [`roadie_deployer::Controller`].
pub struct Stored {
    store: Arc<Store>,
    made: Mutex<HashMap<(PackageId, PackageId, Means), Cell>>,
    encoders: Semaphore,
}

impl Stored {
    /// Nothing encoded yet.
    pub fn new(store: Store) -> Self {
        Self { store: Arc::new(store), made: Mutex::default(), encoders: Semaphore::new(ENCODERS) }
    }

    async fn encode(&self, old: &PackageId, new: &PackageId, means: Means) -> Option<Arc<Delta>> {
        let _permit = self.encoders.acquire().await.ok()?;
        let (store, from, to) = (self.store.clone(), old.clone(), new.clone());
        match tokio::task::spawn_blocking(move || store.delta(&from, &to, means)).await.ok()? {
            Ok(delta) => delta.map(Arc::new),
            Err(error) => {
                // All of it is sent then.
                tracing::debug!(%error, "no difference from package {}", old.short());
                None
            }
        }
    }
}

/// What a service on a host is called in the store.
pub fn place(service: &ServiceName, host: &HostName) -> String {
    format!("{service}@{host}")
}

#[async_trait]
impl Stock for Stored {
    fn last(&self, service: &ServiceName, host: &HostName) -> Option<PackageId> {
        self.store.referred(&place(service, host))
    }

    fn has(&self, package: &PackageId) -> bool {
        self.store.has_base(package)
    }

    async fn adopt(&self, package: &PackageId, files: Vec<u8>) -> bool {
        let (store, id) = (self.store.clone(), package.clone());
        let adopted = tokio::task::spawn_blocking(move || store.adopt(&id, files.as_slice())).await;
        match adopted {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::debug!(%error, "what a host gave is not taken in");
                false
            }
            Err(_) => false,
        }
    }

    async fn delta(&self, old: &PackageId, new: &Package, means: Means) -> Option<Arc<Delta>> {
        // It may be fetched back later.
        if !self.store.has_base(old) {
            return None;
        }
        let key = (old.clone(), new.id.clone(), means);
        let cell = self.made.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
        cell.get_or_init(|| self.encode(old, &new.id, means)).await.clone()
    }

    fn made(&self, old: &PackageId, new: &Package, means: Means) -> Option<Arc<Delta>> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.get(&(old.clone(), new.id.clone(), means))?.get()?.clone()
    }
}
