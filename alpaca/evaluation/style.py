"""How the report's page looks: light or dark, on a desk and on a phone, without anything from elsewhere."""

STYLE = """
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; } h4 { font-size: .8rem; color: var(--dim); margin: 0 0 .15rem; }
.dim, .note { color: var(--dim); } .note { font-size: .92rem; }
.verdict { display: grid; grid-template-columns: 1fr 1.2fr 1fr; gap: 1.25rem; margin: 1.25rem 0 0;
           padding: 1.1rem 1.25rem; border-radius: .6rem; border-left: .4rem solid; }
.verdict h3 { margin: 0 0 .25rem; font-size: .85rem; color: var(--dim); } .verdict p { margin: 0; font-size: 1.05rem; }
.bars { grid-column: 1 / -1; display: grid; grid-template-columns: 1fr 1fr; gap: .75rem 1.75rem; margin: .25rem 0 0; }
.bars h4 { margin-bottom: .3rem; } .bars p { font-size: .9rem; margin: .3rem 0 0; display: flex; flex-wrap: wrap;
           gap: 0 1rem; }
.bar { display: flex; height: 1.6rem; border-radius: .3rem; overflow: hidden; }
.bars i { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin-right: .35rem; }
.manner { background: #90cdf4; } .matter { background: #2b6cb0; } .kept { background: #a0aec0; }
.lost { background: #c05621; } .nothing { background: var(--line); }
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
.odd { margin: .4rem 0 0; font-size: .88rem; color: var(--dim); overflow-wrap: anywhere; }
ul { margin: .3rem 0 .75rem; padding-left: 1.2rem; max-width: 48rem; }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--link); padding: .25rem 0; }
footer { margin-top: 3rem; font-size: .88rem; }
@media (max-width: 44rem) {
  body { padding: 1rem .9rem 2rem; } h1 { font-size: 1.35rem; }
  .verdict { grid-template-columns: 1fr; gap: .9rem; padding: .9rem 1rem; }
  .verdict p { font-size: 1rem; line-height: 1.45; } .bars { grid-template-columns: 1fr; }
  .two, .three { grid-template-columns: 1fr; }
  .three > div { border-left: 0; border-top: 1px solid var(--line); } .three > div:first-child { border-top: 0; }
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  th, td { padding: .35rem .55rem; }
}
@media (prefers-color-scheme: dark) {
  .good { background: #10291c; } .mixed { background: #2c230e; } .bad { background: #331818; }
  .manner { background: #63b3ed; } .matter { background: #2c5282; } .kept { background: #718096; }
  img { border-radius: .4rem; opacity: .92; } /* the figures are drawn on white */
}
@media print { details > * { display: block; } .verdict, article, figure { break-inside: avoid; } }
"""
