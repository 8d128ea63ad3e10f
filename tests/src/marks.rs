//! What the machine counted until each of the guest's marks (`vmmlinux run --marks`).

use serde_json::Value;

use crate::run::Ended;

/// The statistics of a guest that has ended.
pub struct Marks(Vec<Value>);

impl Marks {
    /// The statistics of this guest.
    ///
    /// # Panics
    ///
    /// If there are none.
    pub fn of(ended: &Ended) -> Self {
        let marks = ended.statistics()["marks"].as_array();
        Self(marks.unwrap_or_else(|| panic!("no marks: {}", ended.everything())).clone())
    }

    /// Exits until the mark of this number, from 0 on.
    pub fn exits(&self, mark: usize) -> u64 {
        sum(&self.0[mark]["statistics"]["exits"])
    }

    /// Exits between this mark and the next.
    pub fn exits_from(&self, mark: usize) -> u64 {
        self.exits(mark + 1) - self.exits(mark)
    }

    /// Accesses to a device until a mark; `kind` is `reads` or `writes`.
    pub fn accesses(&self, mark: usize, device: &str, kind: &str) -> u64 {
        self.0[mark]["statistics"]["devices"][device][kind].as_u64().unwrap_or(0)
    }

    /// Accesses to an I/O port until a mark.
    pub fn port(&self, mark: usize, port: u16) -> u64 {
        let counts = &self.0[mark]["statistics"]["ports"][port.to_string()];
        if counts.is_null() { 0 } else { sum(counts) }
    }

    /// Accesses to a device between this mark and the next.
    pub fn accesses_from(&self, mark: usize, device: &str, kind: &str) -> u64 {
        self.accesses(mark + 1, device, kind) - self.accesses(mark, device, kind)
    }
}

fn sum(counts: &Value) -> u64 {
    counts.as_object().expect("counts by name").values().filter_map(Value::as_u64).sum()
}
