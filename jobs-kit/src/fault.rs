//! What can happen to a broker.

use std::fmt;
use std::str::FromStr;

/// What can happen to a broker. A fault begins, lasts, and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Killed without warning; started again at the end, with what it had stored.
    Kill,
    /// All connections are closed, and there are no new ones until the end.
    Cut,
    /// As [`Cut`](Self::Cut), but reset: what was under way is thrown away on both sides.
    Reset,
    /// Silent until the end, with its connections open.
    Stall,
    /// Of brokers that share a queue out among the members of a group: a member joins, and leaves at the
    /// end. Caused only where a harness lists it.
    Rebalance,
}

impl Fault {
    /// What can happen to every broker.
    pub const ALL: [Self; 4] = [Self::Kill, Self::Cut, Self::Reset, Self::Stall];
    const KNOWN: [Self; 5] = [Self::Kill, Self::Cut, Self::Reset, Self::Stall, Self::Rebalance];

    /// The fault's name: `kill`, `cut`, `reset`, `stall` or `rebalance`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Cut => "cut",
            Self::Reset => "reset",
            Self::Stall => "stall",
            Self::Rebalance => "rebalance",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::KNOWN.map(Self::name).join("`, `");
        let found = Self::KNOWN.into_iter().find(|fault| fault.name() == name);
        found.ok_or_else(|| format!("no fault `{name}`; expected one of `{}`", names()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_known_by_its_name() {
        for fault in Fault::KNOWN {
            assert_eq!(fault.name().parse(), Ok(fault));
        }
        let error = "quake".parse::<Fault>().expect_err("no such fault");
        let names = "`kill`, `cut`, `reset`, `stall`, `rebalance`";
        assert_eq!(error, format!("no fault `quake`; expected one of {names}"));
    }
}
