//! What is known of packages on the machine that deploys, besides those that are to be deployed.

use async_trait::async_trait;
use roadie_model::id::{HostName, PackageId, ServiceName};
use roadie_model::package::{Delta, Package};

/// A store of packages, as far as a deployment can use it.
#[async_trait]
pub trait Stock: Send + Sync {
    /// The package that `service` ran on `host` when it was last deployed from here. The host may know better.
    fn last(&self, service: &ServiceName, host: &HostName) -> Option<PackageId>;

    /// What has to be sent to a host that has `old`, for it to have `new`. `None` when `old` is not at hand or it would hardly be
    /// less. Made once, however many ask.
    async fn delta(&self, old: &PackageId, new: &Package) -> Option<Delta>;
}

/// Knows nothing.
pub struct NoStock;

#[async_trait]
impl Stock for NoStock {
    fn last(&self, _: &ServiceName, _: &HostName) -> Option<PackageId> {
        None
    }

    async fn delta(&self, _: &PackageId, _: &Package) -> Option<Delta> {
        None
    }
}
