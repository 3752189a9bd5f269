//! What is known of packages on the machine that deploys, besides those that are to be deployed.

use async_trait::async_trait;
use roadie_model::id::{HostName, PackageId, ServiceName};
use roadie_model::package::{Delta, Means, Package};
use std::sync::Arc;

/// A store of packages, as far as a deployment can use it.
#[async_trait]
pub trait Stock: Send + Sync {
    /// The package that `service` ran on `host` when it was last deployed from here. The host may know better.
    fn last(&self, service: &ServiceName, host: &HostName) -> Option<PackageId>;

    /// Whether it has this package.
    fn has(&self, package: &PackageId) -> bool;

    /// Takes in a package that a host gave: a `.tar.gz` of its files, which are believed only when they give this id. Whether they
    /// did.
    async fn adopt(&self, package: &PackageId, files: Vec<u8>) -> bool;

    /// What has to be sent to a host that has `old` and can do with `means`, for it to have `new`. `None` when `old` is not at
    /// hand or it would hardly be less. Made once, however many ask.
    async fn delta(&self, old: &PackageId, new: &Package, means: Means) -> Option<Arc<Delta>>;
}

/// Knows nothing.
pub struct NoStock;

#[async_trait]
impl Stock for NoStock {
    fn last(&self, _: &ServiceName, _: &HostName) -> Option<PackageId> {
        None
    }

    fn has(&self, _: &PackageId) -> bool {
        false
    }

    async fn adopt(&self, _: &PackageId, _: Vec<u8>) -> bool {
        false
    }

    async fn delta(&self, _: &PackageId, _: &Package, _: Means) -> Option<Arc<Delta>> {
        None
    }
}
