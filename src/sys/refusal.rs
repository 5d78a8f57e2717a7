//! Why the kernel refuses a user namespace, and what to do.
//!
//! A refusal is one error number; what it comes from is found out by looking around ([`Facts::gather`], which reads
//! /proc) and judged by [`Reason::of`], which reads nothing and is tested.
use std::fmt;
use std::fs;
use std::io;

use nix::errno::Errno;
use nix::unistd::Uid;

/// What forbids user namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// kernel.unprivileged_userns_clone is 0.
    Sysctl,
    /// kernel.apparmor_restrict_unprivileged_userns is 1.
    AppArmor,
    /// A seccomp filter, such as a container engine's.
    Seccomp,
    /// user.max_user_namespaces is 0.
    LimitZero,
    /// user.max_user_namespaces or the depth of nesting is reached.
    LimitReached,
    /// The kernel has none.
    Kernel,
    /// Inside a chroot.
    Chroot,
    /// Something else.
    Other(Errno),
}

/// What a refusal is judged by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The caller has every right already (effective uid 0).
    pub root: bool,
    /// kernel.unprivileged_userns_clone.
    pub userns_clone: Option<u64>,
    /// kernel.apparmor_restrict_unprivileged_userns.
    pub apparmor_restricts: Option<u64>,
    /// The caller runs under an AppArmor profile (which that restriction does not concern).
    pub apparmor_confined: bool,
    /// The caller runs under a seccomp filter.
    pub seccomp: bool,
    /// user.max_user_namespaces.
    pub limit: Option<u64>,
    /// The root directory is not that of the first process, as far as can be seen.
    pub chroot: bool,
}

impl Facts {
    /// Read them from /proc; what cannot be read counts as not there.
    pub fn gather() -> Facts {
        let text = |path: &str| fs::read_to_string(path).ok();
        let number = |path: &str| text(path).and_then(|t| t.trim().parse().ok());
        let field = |status: &str, name: &str| {
            status.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned()).unwrap_or_default()
        };
        let status = text("/proc/self/status").unwrap_or_default();
        let profile = text("/proc/self/attr/current").unwrap_or_default();
        let profile = profile.trim_end_matches(['\n', '\0']);
        let mounts = text("/proc/self/mountinfo").unwrap_or_default();
        Facts {
            root: Uid::effective().is_root(),
            userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            apparmor_confined: !profile.is_empty() && profile != "unconfined",
            seccomp: field(&status, "Seccomp:") == "2",
            limit: number("/proc/sys/user/max_user_namespaces"),
            // A process whose root is not a mount point sees no mount at "/".
            chroot: !mounts.is_empty() && !mounts.lines().any(|l| l.split(' ').nth(4) == Some("/")),
        }
    }
}

impl Reason {
    /// What a refusal with `errno` comes from.
    pub fn of(errno: Errno, facts: &Facts) -> Reason {
        match errno {
            Errno::ENOSPC | Errno::EUSERS if facts.limit == Some(0) => Reason::LimitZero,
            Errno::ENOSPC | Errno::EUSERS => Reason::LimitReached,
            Errno::EINVAL => Reason::Kernel,
            // Seccomp filters answer EPERM, some ENOSYS.
            Errno::ENOSYS if facts.seccomp => Reason::Seccomp,
            Errno::ENOSYS => Reason::Kernel,
            Errno::EPERM | Errno::EACCES => {
                if !facts.root && facts.userns_clone == Some(0) {
                    Reason::Sysctl
                } else if !facts.root && facts.apparmor_restricts == Some(1) && !facts.apparmor_confined {
                    Reason::AppArmor
                } else if facts.chroot {
                    Reason::Chroot
                } else if facts.seccomp {
                    Reason::Seccomp
                } else {
                    Reason::Other(errno)
                }
            }
            _ => Reason::Other(errno),
        }
    }

    /// AppArmor lets the namespace be made and then refuses what is done in it: said where a map cannot be written.
    pub fn hint_for_maps() -> String {
        let facts = Facts::gather();
        match facts.apparmor_restricts {
            Some(1) if !facts.root && !facts.apparmor_confined => format!("; {}", Reason::AppArmor),
            _ => String::new(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Sysctl => f.write_str(
                "this machine forbids them to ordinary users (kernel.unprivileged_userns_clone is 0): allow them with \
                 `sudo sysctl kernel.unprivileged_userns_clone=1`",
            ),
            Reason::AppArmor => f.write_str(
                "AppArmor forbids them to programs without a profile \
                 (kernel.apparmor_restrict_unprivileged_userns is 1, the default of Ubuntu 23.10 and later): give this \
                 program a profile with `userns,` in /etc/apparmor.d, or allow all with \
                 `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
            ),
            Reason::Seccomp => f.write_str(
                "a seccomp filter forbids it, such as a container engine's: start the container with \
                 `--security-opt seccomp=unconfined`, or with a profile that allows unshare, clone and mount",
            ),
            Reason::LimitZero => f.write_str(
                "their number is limited to none (user.max_user_namespaces is 0): allow some with \
                 `sudo sysctl user.max_user_namespaces=15000`",
            ),
            Reason::LimitReached => f.write_str(
                "the limit on their number or on their nesting is reached (user.max_user_namespaces, and 32 levels): \
                 end some sandboxes or containers, or raise it with sysctl",
            ),
            Reason::Kernel => {
                f.write_str("this kernel has none: one built with CONFIG_USER_NS and CONFIG_NET_NS is needed")
            }
            Reason::Chroot => {
                f.write_str("the kernel forbids them inside a chroot: use a root that is a mount point (pivot_root)")
            }
            Reason::Other(errno) => write!(f, "{}", io::Error::from(*errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_refusals_have_four_reasons_and_four_ways_out() {
        let user = Facts { limit: Some(15000), ..Facts::default() };
        let sysctl = Reason::of(Errno::EPERM, &Facts { userns_clone: Some(0), ..user.clone() });
        let apparmor = Reason::of(Errno::EPERM, &Facts { apparmor_restricts: Some(1), ..user.clone() });
        let seccomp = Reason::of(Errno::EPERM, &Facts { seccomp: true, ..user.clone() });
        let limit = Reason::of(Errno::ENOSPC, &Facts { limit: Some(0), ..user.clone() });
        assert_eq!(
            [sysctl, apparmor, seccomp, limit],
            [Reason::Sysctl, Reason::AppArmor, Reason::Seccomp, Reason::LimitZero]
        );
        assert!(sysctl.to_string().contains("sysctl kernel.unprivileged_userns_clone=1"));
        assert!(apparmor.to_string().contains("/etc/apparmor.d"));
        assert!(seccomp.to_string().contains("seccomp=unconfined"));
        assert!(limit.to_string().contains("sysctl user.max_user_namespaces"));
        assert_eq!(Reason::of(Errno::ENOSPC, &user), Reason::LimitReached);
    }

    #[test]
    fn a_container_on_ubuntu_is_told_of_its_filter_not_of_apparmor() {
        let facts = Facts { apparmor_restricts: Some(1), apparmor_confined: true, seccomp: true, ..Facts::default() };
        assert_eq!(Reason::of(Errno::EPERM, &facts), Reason::Seccomp);
    }

    #[test]
    fn root_is_not_told_of_what_concerns_users_only() {
        let facts = Facts { root: true, userns_clone: Some(0), seccomp: true, ..Facts::default() };
        assert_eq!(Reason::of(Errno::EPERM, &facts), Reason::Seccomp);
    }
}
