//! tapline gives a command, or a namespace that a container runtime made, a network of its own,
//! without any privilege on the host.
//!
//! The rooms of the house, from what was typed to the byte that leaves (see ARCHITECTURE.md):
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`cli`] | tapline's own command line; turns words into a plan |
//! | [`compat`] | other tools' command lines, turned into the same plans |
//! | [`plan`] | what was asked for, checked. No system call |
//! | [`sandbox`] | namespaces, the view of `/etc`; supervisor and agent |
//! | [`control`] | the attach protocol, the state directory, the gateway's control thread |
//! | [`datapath`] | a worker's event loop and its ports |
//! | [`policy`] | the one place where a new flow is judged |
//! | [`gateway`] | the stack sandboxes talk to. No system call, no clock |
//! | [`host`] | host sockets: connect, datagrams, ping sockets, error queues |
//! | [`publish`] | published ports: listeners, the spliced path, automatic publishing |
//! | [`names`] | the DNS forwarder |
//! | [`confine`] | what each process gives up |
//! | [`observe`] | counters, logging |
//! | [`sys`] | raw kernel interfaces; all `unsafe` is here |
#![deny(unsafe_code)]

pub mod cli;
pub mod compat;
pub mod confine;
pub mod control;
pub mod datapath;
#[doc(hidden)]
pub mod fuzzing;
pub mod gateway;
pub mod host;
pub mod names;
pub mod observe;
pub mod plan;
pub mod policy;
pub mod publish;
pub mod sandbox;
#[allow(unsafe_code)]
pub mod sys;
