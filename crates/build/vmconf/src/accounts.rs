//! Users and groups of a host, by name and by number.

use std::collections::HashMap;

use crate::{host_files::HostFiles, model::Owner};

/// The group of an owner without one (`gid_t` −1).
const NO_GROUP: u32 = u32::MAX;

/// The number of a user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Id {
    Number(u32),
    /// The number is not known.
    Name(String),
}

impl Id {
    /// Whether vmd takes the two for the same. `None` for a number and a name whose number is not known.
    pub(crate) fn is(&self, other: &Self) -> Option<bool> {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => Some(a == b),
            (Self::Name(a), Self::Name(b)) => Some(a == b),
            // Names other than root and wheel are taken to have other numbers.
            (Self::Number(0 | NO_GROUP), Self::Name(_)) | (Self::Name(_), Self::Number(0 | NO_GROUP)) => {
                Some(false)
            }
            _ => None,
        }
    }
}

/// The users and groups of a host.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    users: Option<HashMap<String, u32>>,
    groups: Option<HashMap<String, u32>>,
}

impl Accounts {
    pub(crate) fn of(files: &HostFiles) -> Self {
        Self { users: files.users(), groups: files.groups() }
    }

    /// Whether there are files to look names up in.
    pub(crate) fn are_known(&self) -> bool {
        self.users.is_some() && self.groups.is_some()
    }

    /// The name in `owner` that the host does not know.
    pub(crate) fn unknown<'a>(&self, owner: &'a Owner) -> Option<(&'static str, &'a str)> {
        let Owner::Named { user, group } = owner else { return None };
        let missing = |names: &Option<HashMap<String, u32>>, name: &'a Option<String>| {
            name.as_deref().filter(|name| names.as_ref().is_some_and(|names| !names.contains_key(*name)))
        };
        let user = missing(&self.users, user).map(|name| ("user", name));
        user.or_else(|| missing(&self.groups, group).map(|name| ("group", name)))
    }

    pub(crate) fn user(&self, owner: Option<&Owner>) -> Id {
        match owner {
            #[allow(clippy::cast_possible_truncation, reason = "vmd assigns the number to a uid_t")]
            Some(Owner::Uid(uid)) => Id::Number(uid.cast_unsigned() as u32),
            Some(Owner::Named { user: Some(user), .. }) => id(self.users.as_ref(), user, "root"),
            _ => Id::Number(0),
        }
    }

    pub(crate) fn group(&self, owner: Option<&Owner>) -> Id {
        match owner {
            Some(Owner::Named { group: Some(group), .. }) => id(self.groups.as_ref(), group, "wheel"),
            _ => Id::Number(NO_GROUP),
        }
    }
}

/// The number of a name, from the host's file if there is one; `zero` has 0 on every host.
fn id(names: Option<&HashMap<String, u32>>, name: &str, zero: &str) -> Id {
    match names.and_then(|names| names.get(name)) {
        Some(number) => Id::Number(*number),
        None if name == zero => Id::Number(0),
        None => Id::Name(name.to_owned()),
    }
}
