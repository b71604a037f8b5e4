"""How the report's page looks: light or dark, on a desk and on a phone, without anything from elsewhere."""

STYLE = """
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; } h4 { font-size: .8rem; color: var(--dim); margin: 0 0 .15rem; }
.dim, .note { color: var(--dim); } .note { font-size: .92rem; }
.verdict { display: grid; grid-template-columns: 1fr 1.4fr 1fr; gap: 1.25rem; margin: 1.25rem 0 0;
           padding: 1.1rem 1.25rem; border-radius: .6rem; border-left: .4rem solid; }
.verdict h3 { margin: 0 0 .25rem; font-size: .85rem; color: var(--dim); } .verdict p { margin: 0; font-size: 1.05rem; }
.good { background: #f0fff4; border-color: #38a169; } .mixed { background: #fffbeb; border-color: #d69e2e; }
.bad { background: #fff5f5; border-color: #e53e3e; }
.scroll { overflow-x: auto; margin: .75rem 0; border: 1px solid var(--line); border-radius: .4rem;
          max-width: max-content; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; } thead th { background: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; } th:first-child { text-align: left; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem 1.25rem;
         margin: .75rem 0; }
.facts dt { font-size: .82rem; color: var(--dim); } .facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
figure { margin: .75rem 0; } img { width: 100%; max-width: 44rem; height: auto; display: block; }
.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 1.5rem; }
.two figure { margin: .5rem 0; }
article { border: 1px solid var(--line); border-radius: .5rem; margin: .75rem 0; overflow: hidden; }
.ask { background: var(--soft); padding: .6rem .9rem; font-weight: 600; border-bottom: 1px solid var(--line); }
.three { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); }
.three > div { padding: .6rem .9rem; border-left: 1px solid var(--line); } .three > div:first-child { border-left: 0; }
.say { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; font-size: .94rem; }
.ask .say { font-size: 1rem; } .none { color: var(--dim); font-style: italic; }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--link); padding: .25rem 0; }
footer { margin-top: 3rem; font-size: .88rem; }
@media (max-width: 44rem) {
  body { padding: 1rem .9rem 2rem; } h1 { font-size: 1.35rem; }
  .verdict { grid-template-columns: 1fr; gap: .9rem; padding: .9rem 1rem; }
  .two, .three { grid-template-columns: 1fr; }
  .three > div { border-left: 0; border-top: 1px solid var(--line); } .three > div:first-child { border-top: 0; }
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  th, td { padding: .35rem .55rem; }
}
@media (prefers-color-scheme: dark) {
  .good { background: #10291c; } .mixed { background: #2c230e; } .bad { background: #331818; }
  img { border-radius: .4rem; opacity: .92; } /* the figures are drawn on white */
}
@media print { details > * { display: block; } .verdict, article, figure { break-inside: avoid; } }
"""
