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

    /// Whether there is this package to compare others with. Also says so when it could not keep one.
    fn has(&self, package: &PackageId) -> bool;

    /// Takes in what a host says is this package, to compare others with and for nothing else: a `.tar.gz` of its files. Whether
    /// they give this id.
    async fn adopt(&self, package: &PackageId, files: Vec<u8>) -> bool;

    /// What has to be sent to a host that has `old` and can do with `means`, for it to have `new`. `None` when `old` is not at
    /// hand or it would hardly be less. Made once, however many ask.
    async fn delta(&self, old: &PackageId, new: &Package, means: Means) -> Option<Arc<Delta>>;

    /// The same if it was made already; nothing is begun.
    fn made(&self, old: &PackageId, new: &Package, means: Means) -> Option<Arc<Delta>>;
}

/// Knows nothing.
pub struct NoStock;

#[async_trait]
impl Stock for NoStock {
    fn last(&self, _: &ServiceName, _: &HostName) -> Option<PackageId> {
        None
    }

    fn has(&self, _: &PackageId) -> bool {
        true
    }

    async fn adopt(&self, _: &PackageId, _: Vec<u8>) -> bool {
        false
    }

    async fn delta(&self, _: &PackageId, _: &Package, _: Means) -> Option<Arc<Delta>> {
        None
    }

    fn made(&self, _: &PackageId, _: &Package, _: Means) -> Option<Arc<Delta>> {
        None
    }
}
