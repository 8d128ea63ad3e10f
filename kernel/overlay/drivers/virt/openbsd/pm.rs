// SPDX-License-Identifier: GPL-2.0

//! The device while the guest sleeps, and after.
//!
//! The host does not know that a guest sleeps, and kills one that does not answer a stop. So a stop
//! is acknowledged even then, wakes the guest from suspend-to-idle, and is carried out when all
//! runs again.

use kernel::{
    notifier::{
        Notifier,
        NotifyReturn, //
    },
    pm,
    prelude::*,
    sync::Arc, //
};

use crate::control::Control;

/// A PM notifier.
pub(crate) struct Sleep(Arc<Control>);

impl Sleep {
    /// Registers the notifier.
    pub(crate) fn register(control: &Arc<Control>) -> Result<Pin<KBox<pm::Registration<Self>>>> {
        let sleep = Self(control.clone());
        KBox::pin_init(pm::Registration::new(sleep), GFP_KERNEL)
    }
}

impl Notifier<pm::Chain> for Sleep {
    fn notify(&self, event: pm::Event) -> NotifyReturn {
        if event.is_prepare() {
            self.0.suspend();
        } else {
            self.0.resume();
        }
        NotifyReturn::Done
    }
}
