//! The package store, as deployments use it: what hosts run as far as we know, and what makes one package from another.

use async_trait::async_trait;
use roadie_deployer::Stock;
use roadie_model::id::{HostName, PackageId, ServiceName};
use roadie_model::package::{Delta, Package};
use roadie_packager::Store;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OnceCell, Semaphore};

/// Patches encoded at the same time: each holds both packages in memory, and takes all cores.
const ENCODERS: usize = 2;

/// One patch, for all hosts that need it.
type Cell = Arc<OnceCell<Option<Delta>>>;

/// A [`Store`] for a [`roadie_deployer::Controller`].
pub struct Stored {
    store: Arc<Store>,
    made: Mutex<HashMap<(PackageId, PackageId), Cell>>,
    encoders: Semaphore,
}

impl Stored {
    /// Nothing encoded yet.
    pub fn new(store: Store) -> Self {
        Self { store: Arc::new(store), made: Mutex::default(), encoders: Semaphore::new(ENCODERS) }
    }

    async fn encode(&self, old: &PackageId, new: &PackageId) -> Option<Delta> {
        let _permit = self.encoders.acquire().await.ok()?;
        let (store, from, to) = (self.store.clone(), old.clone(), new.clone());
        match tokio::task::spawn_blocking(move || store.delta(&from, &to)).await.ok()? {
            Ok(delta) => delta,
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

    async fn delta(&self, old: &PackageId, new: &Package) -> Option<Delta> {
        let key = (old.clone(), new.id.clone());
        let cell = self.made.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
        cell.get_or_init(|| self.encode(old, &new.id)).await.clone()
    }
}
