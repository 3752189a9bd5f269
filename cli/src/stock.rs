//! The package store, as deployments use it: what hosts run as far as we know, and what makes one package from another.

use async_trait::async_trait;
use roadie_deployer::Stock;
use roadie_model::id::{HostName, PackageId, ServiceName};
use roadie_model::package::{Delta, Package};
use roadie_packager::Store;
use std::sync::Arc;

/// A [`Store`] for a [`roadie_deployer::Controller`].
pub struct Stored(pub Arc<Store>);

/// What a service on a host is called in the store.
pub fn place(service: &ServiceName, host: &HostName) -> String {
    format!("{service}@{host}")
}

#[async_trait]
impl Stock for Stored {
    fn last(&self, service: &ServiceName, host: &HostName) -> Option<PackageId> {
        self.0.referred(&place(service, host))
    }

    async fn delta(&self, old: &PackageId, new: &Package) -> Option<Delta> {
        let (store, from, to) = (self.0.clone(), old.clone(), new.id.clone());
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
